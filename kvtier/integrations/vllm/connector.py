"""The class that vLLM makes, once in the scheduler's process and once in each worker."""

from __future__ import annotations

import json
import logging
import secrets
from contextlib import suppress
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvtier.client.client import Client
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import KvtierError
from kvtier.integrations.vllm.groups import groups_of
from kvtier.integrations.vllm.identity import shard_of, worker_layout
from kvtier.integrations.vllm.metrics import KvtierPromMetrics, KvtierStats
from kvtier.integrations.vllm.paged import paged_groups
from kvtier.integrations.vllm.plan import Plan, WorkerLayout
from kvtier.integrations.vllm.scheduler_side import SchedulerSide
from kvtier.integrations.vllm.settings import Settings
from kvtier.integrations.vllm.worker_side import WorkerSide

log = logging.getLogger("vllm.kvtier")


class KvtierConnector(KVConnectorBase_V1, SupportsHMA):
    """Loads and stores blocks by way of the node's agent.

    Constructing raises ValueError or InvalidRequestError for a configuration that must be mended.
    After that nothing that goes wrong reaches the engine: without an agent, and for a model whose
    state is not kept, it computes.
    """

    _cache_hit_source = CacheHitSource.HOST

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        check(vllm_config)
        self._settings = Settings.from_extra_config(
            self._kv_transfer_config.kv_connector_extra_config
        )
        # Raises for names that the agent would refuse at every request.
        NamespaceSpec(self._settings.namespace or "name", (1,), self._settings.tenant)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._layout: WorkerLayout | None = None
        if role == KVConnectorRole.SCHEDULER and is_kept(vllm_config, kv_cache_config):
            client = self._client("scheduler", self._settings.lookup_timeout_seconds)
            self._scheduler = SchedulerSide(vllm_config, kv_cache_config, self._settings, client)

    def _client(self, role: str, timeout_seconds: float) -> Client:
        worker = f"vllm {role} {self._kv_transfer_config.engine_id or ''}"[:48].strip()
        return Client(
            self._settings.address or None, worker=worker, timeout_seconds=timeout_seconds
        )

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # The scheduler's side

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        if self._scheduler is not None:
            ordered = [metadata[rank] for rank in sorted(metadata)]
            self._scheduler.set_layouts(
                layout for layout in ordered if isinstance(layout, WorkerLayout)
            )

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.bind(gpu_block_pool)

    def on_new_request(self, request: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.add(request)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self._scheduler is None:
            return 0, False
        tokens = self._scheduler.matched_tokens(request, num_computed_tokens)
        return tokens, tokens > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler is not None and num_external_tokens:
            self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[CacheHitSource, int]:
        if self._scheduler is None or not num_external_tokens:
            return {}
        return self._scheduler.sources(request, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return Plan() if self._scheduler is None else self._scheduler.plan(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.received(connector_output.finished_recving or ())
            self._scheduler.step_ended()

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, None]:
        if self._scheduler is None:
            return False, None
        return self._scheduler.finish(request, block_ids), None

    def reset_cache(self) -> bool | None:
        """Forgets what was stored: from now on another namespace is used, this engine's own."""
        if self._scheduler is not None:
            self._scheduler.reset(secrets.token_hex(8))
        return True

    # The workers' side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        config, kv_cache = self._vllm_config, self._kv_cache_config
        if not is_kept(config, kv_cache):
            return
        groups = groups_of(kv_cache, kv_cache.hash_block_size or config.cache_config.block_size)
        paged = paged_groups(groups, kv_cache, kv_caches)
        self._layout = worker_layout(config, [group.block_bytes for group in paged], kv_caches)
        shard, stores = shard_of(config, kv_cache, config.parallel_config.rank)
        client = self._client(f"worker {shard}", self._settings.transfer_timeout_seconds)
        if (device := next(iter(kv_caches.values())).device).type != "cpu":
            with suppress(KvtierError):  # HOST serves it all the same
                client.use_device(device)
        self._worker = WorkerSide(paged, shard, stores, client)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return self._layout

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        if self._worker is not None and isinstance(kv_connector_metadata, Plan):
            self._worker.begin(kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads have begun before the step, in `handle_preemptions`."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Requests wait for all their layers: see `get_transfer_results`."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Blocks are stored with all their layers, after the step."""

    def wait_for_save(self) -> None:
        if self._worker is not None and isinstance(self._connector_metadata, Plan):
            self._worker.computed(self._connector_metadata)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._worker is None or not isinstance(self._connector_metadata, Plan):
            return KVConnectorTransferResults()
        return self._worker.results(self._connector_metadata, finished_req_ids)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set() if self._worker is None else self._worker.take_invalid()

    # Both

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        side = self._scheduler or self._worker
        return None if side is None else side.take_stats()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats:
        return KvtierStats(data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KvtierPromMetrics:
        return KvtierPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        for side in (self._scheduler, self._worker):
            if side is not None:
                side.close()
        self._scheduler = self._worker = None


def check(config: VllmConfig) -> None:
    """Raises ValueError for a policy under which a lost block would fail its request."""
    transfer = config.kv_transfer_config
    assert transfer is not None
    if transfer.kv_load_failure_policy != "recompute":
        wanted = {
            "kv_connector": "KvtierConnector",
            "kv_connector_module_path": "kvtier.integrations.vllm",
            "kv_role": transfer.kv_role or "kv_both",
            "kv_load_failure_policy": "recompute",
        }
        if transfer.kv_connector_extra_config:
            wanted["kv_connector_extra_config"] = transfer.kv_connector_extra_config
        raise ValueError(
            f"kv_load_failure_policy is {transfer.kv_load_failure_policy!r}: a block that is gone "
            "when it is to be loaded would fail its request. Put\n"
            f"  --kv-transfer-config '{json.dumps(wanted)}'"
        )
    algorithm = config.cache_config.prefix_caching_hash_algo
    if algorithm != "sha256_cbor":
        log.warning(
            "kvtier: prefixes are hashed with %s, which other Python versions may do differently; "
            "put --prefix-caching-hash-algo sha256_cbor",
            algorithm,
        )


def is_kept(config: VllmConfig, kv_cache: KVCacheConfig) -> bool:
    """Whether blocks of this model can be kept; logs why not."""
    parallel = config.parallel_config
    try:
        if parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size > 1:
            raise ValueError("its context is split between workers")
        if not config.cache_config.enable_prefix_caching:  # off where no prefix can be gone on with
            raise ValueError("prefix caching is off")
        groups_of(kv_cache, kv_cache.hash_block_size or config.cache_config.block_size)
    except ValueError as error:
        log.warning("kvtier: nothing of this model is loaded or stored: %s", error)
        return False
    return True
