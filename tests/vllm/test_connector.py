"""The connector's parts, without an engine."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from kvtier.client.client import Client
from kvtier.client.namespace import Lookup
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import AgentUnavailableError
from kvtier.integrations.vllm.background import Background
from kvtier.integrations.vllm.connector import check, is_kept
from kvtier.integrations.vllm.groups import Group, groups_of, longest_end
from kvtier.integrations.vllm.identity import shard_of
from kvtier.integrations.vllm.lookup import Finder
from kvtier.integrations.vllm.metrics import KvtierStats
from kvtier.integrations.vllm.paged import PagedGroup, paged_groups
from kvtier.integrations.vllm.plan import Blocks, Load, Plan, Store
from kvtier.integrations.vllm.prefill_speed import PrefillSpeed
from kvtier.integrations.vllm.reconnecting import call
from kvtier.integrations.vllm.settings import Settings
from kvtier.integrations.vllm.worker_side import WorkerSide
from kvtier.testing.agent_process import AgentProcess
from kvtier.testing.clock import ManualClock
from tests.faults.waiting import wait_until

BLOCKS, LAYERS, HEADS, TOKENS, HEAD_DIM = 32, 3, 2, 16, 8


def _config(replicas: int = 1) -> KVCacheConfig:
    spec = FullAttentionSpec(
        block_size=TOKENS, num_kv_heads=HEADS, head_size=HEAD_DIM, dtype=torch.float32
    )
    names = [f"layer.{number}" for number in range(LAYERS)]
    page = spec.page_size_bytes
    tensor = KVCacheTensor(
        size=BLOCKS * page * LAYERS, layers=names, layer_stride=page * BLOCKS, block_stride=page
    )
    return KVCacheConfig(
        num_blocks=BLOCKS,
        kv_cache_tensors=[tensor],
        kv_cache_groups=[KVCacheGroupSpec(names, spec)],
        hash_block_size=TOKENS,
        kv_tp_replicas=replicas,
    )


def _caches(config: KVCacheConfig, seed: int, layout: str = "layers") -> dict[str, torch.Tensor]:
    """Per-layer views of one allocation, layer after layer or block after block."""
    torch.manual_seed(seed)
    shape = (HEADS, TOKENS, 2 * HEAD_DIM)
    if layout == "layers":
        whole = torch.randn(LAYERS, BLOCKS, *shape)
        views = list(whole)
    else:
        whole = torch.randn(BLOCKS, LAYERS, *shape)
        views = [whole[:, layer] for layer in range(LAYERS)]
    return dict(zip(config.kv_cache_groups[0].layer_names, views, strict=True))


def _group(config: KVCacheConfig, caches: dict[str, torch.Tensor]) -> PagedGroup:
    return paged_groups(groups_of(config, TOKENS), config, caches)[0]


@pytest.mark.parametrize("layout", ["layers", "blocks"])
@pytest.mark.parametrize(
    "ids", [[1, 2, 3, 4], [9, 8, 7, 6], [5], [3, 4, 9, 8, 20, 1, 0], [2, 1, 0]], ids=str
)
def test_blocks_are_all_layers_bytes_one_after_the_other(layout: str, ids: list[int]) -> None:
    config = _config()
    caches = _caches(config, 1, layout)
    group = _group(config, caches)
    slots = np.zeros((40, group.block_bytes + 64), np.uint8)
    cells = slots[3 : 3 + len(ids), : group.block_bytes]
    group.read(ids, cells)
    for block, cell in zip(ids, cells, strict=True):
        wanted = torch.stack([cache[block] for cache in caches.values()])
        assert cell.tobytes() == wanted.contiguous().numpy().tobytes()
    others = _caches(config, 2, layout)
    untouched = {name: cache.clone() for name, cache in others.items()}
    _group(config, others).write(ids, cells)
    for name, cache in others.items():
        for block in range(BLOCKS):
            source = caches if block in ids else untouched
            assert torch.equal(cache[block], source[name][block])


def test_latent_vectors_are_blocks_like_others() -> None:
    """Of models with one vector for all heads (MLA), which ranks have alike."""
    latent = 576
    spec = MLAAttentionSpec(
        block_size=TOKENS, num_kv_heads=1, head_size=latent, dtype=torch.float32
    )
    config = _config(replicas=2)
    names = config.kv_cache_groups[0].layer_names
    config.kv_cache_groups[0] = KVCacheGroupSpec(names, spec)
    torch.manual_seed(3)
    caches = {name: torch.randn(BLOCKS, TOKENS, latent) for name in names}
    group = _group(config, caches)
    assert group.block_bytes == LAYERS * TOKENS * latent * 4
    cells = np.zeros((3, group.block_bytes), np.uint8)
    group.read([7, 6, 20], cells)
    others = {name: torch.zeros_like(cache) for name, cache in caches.items()}
    _group(config, others).write([1, 2, 3], cells)
    for name, cache in others.items():
        assert torch.equal(cache[1:4], caches[name][[7, 6, 20]])


def test_a_model_without_prefix_caching_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    config: Any = SimpleNamespace(
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1, prefill_context_parallel_size=1
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=False, block_size=TOKENS),
    )
    with caplog.at_level("WARNING", "vllm.kvtier"):
        assert not is_kept(config, _config())
    assert "prefix caching is off" in caplog.text
    config.cache_config.enable_prefix_caching = True
    assert is_kept(config, _config())


def test_a_window_needs_the_blocks_that_it_reaches() -> None:
    full = Group(0, 0, 16, 1, 0)
    window = Group(1, 1, 16, 1, 40)
    assert full.first_needed(10) == 0
    assert [window.first_needed(end) for end in (1, 3, 10)] == [0, 0, 7]
    here = {7, 8, 9, 4, 5}
    assert longest_end([window], 16, 0, 160, lambda _, block: block in here) == 160
    assert longest_end([window], 16, 0, 144, lambda _, block: block in here) == 0
    assert longest_end([window], 16, 96, 144, lambda _, block: block in {6, 7, 8}) == 144
    assert longest_end([], 16, 0, 144, lambda _, __: False) == 144


def test_replicated_ranks_are_one_shard_that_one_of_them_stores() -> None:
    config: Any = None
    assert [shard_of(config, _config(1), rank) for rank in range(2)] == [(0, True), (1, True)]
    assert [shard_of(config, _config(2), rank) for rank in range(4)] == [
        (0, True),
        (0, False),
        (1, True),
        (1, False),
    ]


def test_models_with_other_state_are_not_kept() -> None:
    window = SlidingWindowSpec(
        block_size=TOKENS,
        num_kv_heads=HEADS,
        head_size=HEAD_DIM,
        dtype=torch.float32,
        sliding_window=64,
    )
    config = _config()
    config.kv_cache_groups.append(KVCacheGroupSpec(["window"], window))
    assert [group.window_tokens for group in groups_of(config, TOKENS)] == [0, 64]
    eagle = _config()
    eagle.kv_cache_groups[0].is_eagle_group = True
    with pytest.raises(ValueError, match="EAGLE"):
        groups_of(eagle, TOKENS)


def test_the_line_to_put_is_printed() -> None:
    transfer = SimpleNamespace(
        kv_load_failure_policy="fail",
        kv_role="kv_both",
        kv_connector_extra_config={"address": "unix:/run/kvtier/worker.sock"},
    )
    config: Any = SimpleNamespace(kv_transfer_config=transfer)
    with pytest.raises(ValueError, match=r'--kv-transfer-config .*"recompute".*worker\.sock'):
        check(config)


def test_a_setting_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"extra_config\.adress .*address"):
        Settings.from_extra_config({"adress": ""})
    with pytest.raises(ValueError, match=r"hold_seconds is '3'; it must be a float"):
        Settings.from_extra_config({"hold_seconds": "3"})
    assert Settings.from_extra_config({"hold_seconds": 3}).hold_seconds == 3.0


def test_plans_travel_between_processes() -> None:
    plan = Plan(
        {"name": "a"}, [Load("r", [Blocks(0, [b"x"], [1])], 1.0)], [Store("r", [])], {1}, {"r"}
    )
    assert pickle.loads(pickle.dumps(plan)) == plan


class _Restarting:
    """A client whose agent is gone at the first call, and back soon."""

    def __init__(self, comes_back: bool) -> None:
        self.is_connected = True
        self.calls = 0
        self._comes_back = comes_back

    def action(self) -> str:
        self.calls += 1
        if self.calls == 1:
            self.is_connected = self._comes_back
            raise AgentUnavailableError("gone")
        return "done"


def test_a_call_is_made_again_when_the_agent_is_back() -> None:
    back: Any = _Restarting(comes_back=True)
    assert call(back, 1.0, back.action) == "done"
    gone: Any = _Restarting(comes_back=False)
    with pytest.raises(AgentUnavailableError):
        call(gone, 0.01, gone.action)
    assert gone.calls == 1


def test_what_was_put_before_the_end_is_done_and_what_is_too_much_is_dropped() -> None:
    done: list[int] = []
    begun, goes_on = threading.Event(), threading.Event()

    def handle(number: int) -> None:
        begun.set()
        assert goes_on.wait(10.0)
        done.append(number)

    thread = Background("test", handle, most_waiting=2)
    thread.put(0)
    assert begun.wait(10.0)
    for number in range(1, 5):
        thread.put(number)
    goes_on.set()
    thread.close()
    assert done == [0, 1, 2]


class _Recording:
    """A namespace of which nothing is cached; keeps what lookups say."""

    spec = NamespaceSpec("model", (1,), block_tokens=TOKENS)

    def __init__(self) -> None:
        self.said: list[float] = []

    def lookup(self, hashes: Sequence[bytes], **settings: Any) -> Lookup:
        self.said.append(settings["compute_seconds_per_block"])
        return Lookup(0)


def test_lookups_tell_how_fast_the_engine_computes() -> None:
    clock, stats, namespace = ManualClock(), KvtierStats(), _Recording()
    speed = PrefillSpeed(stats, clock)
    client: Any = SimpleNamespace(is_connected=True)
    finder = Finder([Group(0, 0, TOKENS, 1, 0)], Settings(), client, speed, stats, clock)
    request = SimpleNamespace(
        request_id="r",
        num_tokens=8 * TOKENS + 1,
        block_hashes=HASHES,
        skip_reading_prefix_cache=False,
    )
    as_namespace: Any = namespace
    assert finder.find(as_namespace, request, 0).end == 0
    speed.begin(1000, 0)
    clock.advance(2.0)
    speed.end()
    finder.find(as_namespace, request, 0)
    assert namespace.said == [0.0, 2.0 * TOKENS / 1000]


HASHES = [bytes([number]) * 32 for number in range(8)]


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    with AgentProcess(settings={"tiers.host.capacity": "64MiB"}) as running:
        yield running


def _run(worker: WorkerSide, plan: Plan) -> Any:
    """One step, and what it and idle steps after it report."""
    worker.begin(plan)
    worker.computed(plan)
    found: list[Any] = []
    idle = Plan(plan.namespace, finished=plan.finished, idle=True)
    results = worker.results(idle)

    def ended() -> bool:
        found.append(worker.results(Plan(plan.namespace, idle=True)))
        return any(each.finished_sending or each.finished_recving for each in (results, *found))

    wait_until(ended, 10.0)
    return next(
        each for each in (results, *found) if each.finished_sending or each.finished_recving
    )


def test_two_ranks_store_and_load_their_own_shards(agent: AgentProcess) -> None:
    config = _config()
    caches = [_caches(config, rank) for rank in range(2)]
    fields: dict[str, Any] = {
        "name": "two-ranks",
        "block_bytes": (_group(config, caches[0]).block_bytes,),
        "shards": 2,
    }
    ids = list(range(8, 0, -1))
    stores = [Store("a", [Blocks(0, HASHES, ids)])]

    def make(tensors: dict[str, torch.Tensor], rank: int, stores: bool = True) -> WorkerSide:
        groups = paged_groups(groups_of(config, TOKENS), config, tensors)
        return WorkerSide(groups, rank, stores, Client(agent.address))

    for rank in range(2):
        worker = make(caches[rank], rank)
        results = _run(worker, Plan(fields, stores=stores, finished={"a"}))
        assert results.finished_sending == {"a"}
        worker.close()
        with Client(agent.address) as client:
            found = client.namespace(NamespaceSpec(**fields)).lookup(HASHES, shards=(0, 1))
        assert found.matched == (8 if rank else 0)
    for rank in range(2):
        others = _caches(config, 7)
        worker = make(others, rank)
        load = Load("b", [Blocks(0, HASHES, [20, 21, 22, 23, 30, 29, 28, 27])], 60.0)
        results = _run(worker, Plan(fields, loads=[load]))
        assert results.finished_recving == {"b"}
        assert not worker.take_invalid()
        worker.close()
        for paged, block in zip(load.blocks[0].ids, ids, strict=True):
            for name, cache in others.items():
                assert torch.equal(cache[paged], caches[rank][name][block])


def test_what_is_gone_is_reported_block_by_block(agent: AgentProcess) -> None:
    config = _config()
    caches = _caches(config, 1)
    groups = paged_groups(groups_of(config, TOKENS), config, caches)
    fields: dict[str, Any] = {"name": "gone", "block_bytes": (groups[0].block_bytes,)}
    worker = WorkerSide(groups, 0, True, Client(agent.address))
    _run(
        worker,
        Plan(fields, stores=[Store("a", [Blocks(0, HASHES[:3], [1, 2, 3])])], finished={"a"}),
    )
    results = _run(
        worker, Plan(fields, loads=[Load("b", [Blocks(0, HASHES, list(range(8, 16)))], 60.0)])
    )
    assert results.finished_recving == {"b"}
    assert worker.take_invalid() == set(range(11, 16))
    worker.close()


def test_blocks_that_are_overwritten_are_not_stored(agent: AgentProcess) -> None:
    """The step begins when no store reads them any more."""
    config = _config()
    caches = _caches(config, 1)
    groups = paged_groups(groups_of(config, TOKENS), config, caches)
    fields: dict[str, Any] = {"name": "overwritten", "block_bytes": (groups[0].block_bytes,)}
    worker = WorkerSide(groups, 0, True, Client(agent.address))
    agent.pause()  # so that the store waits for its slots
    try:
        worker.computed(Plan(fields, stores=[Store("a", [Blocks(0, HASHES, list(range(1, 9)))])]))
        worker.begin(Plan(fields, overwritten={5}))
        for cache in caches.values():
            cache.zero_()
    finally:
        agent.resume()
    _run(worker, Plan(fields, finished={"a"}))
    worker.close()
    with Client(agent.address) as client:
        assert client.namespace(NamespaceSpec(**fields)).lookup(HASHES).matched == 0
