"""HiCache's storage backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolName,
)

from kvtier.client.client import Client
from kvtier.client.namespace import Namespace, Place
from kvtier.core.block import BlockStatus
from kvtier.integrations.attempts import Attempts
from kvtier.integrations.engine_settings import engine_settings
from kvtier.integrations.parts import parts
from kvtier.integrations.sglang.host_pages import HostPages
from kvtier.integrations.sglang.identity import namespace_spec, shard_of
from kvtier.integrations.sglang.settings import Settings

log = logging.getLogger(__name__)

_SECTION = "hicache-storage-backend-extra-config"
#: Leased or reserved at a time.
_PART_BYTES = 128 << 20
_OK = frozenset({int(BlockStatus.OK)})
_STORED = _OK | {int(BlockStatus.PRESENT)}

Keys = Sequence[str]
Extra: TypeAlias = HiCacheStorageExtraInfo | None


class KvtierHiCache(HiCacheStorage):
    """Keeps pages of HiCache's host memory in the agent of this node.

    With `interface_v1` pages are copied between the pool and the agent's memory, without it one
    more time, as SGLang hands them over. The two are namespaces of their own, for their bytes may
    be in another order. An agent that is away or slow is a miss; the first such failure in a row is
    logged. Constructing raises ValueError for a wrong setting, registering a pool for one whose
    pages cannot be kept.
    """

    def __init__(
        self, storage_config: HiCacheStorageConfig, kwargs: Mapping[str, Any] | None = None
    ) -> None:
        extra = storage_config.extra_config or {}
        if storage_config.should_split_heads:
            raise ValueError(f"{_SECTION}.tp_lcm_size: kvtier keeps whole pages; leave it out")
        self._config = storage_config
        self._settings = engine_settings(Settings, extra.get("kvtier", {}), f"{_SECTION}.kvtier")
        self._is_v1 = bool(extra.get("interface_v1", 0))
        self._shard, _ = shard_of(storage_config)
        self._client = Client(
            self._settings.address or None,
            worker=f"sglang-{self._shard}",
            timeout_seconds=self._settings.timeout_seconds,
        )
        self._attempts = Attempts(log)
        self._pages: HostPages | None = None
        self._namespace: Namespace | None = None

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Comes once, before anything is asked for."""
        super().register_mem_pool_host(mem_pool_host)
        if self._is_v1:
            self._pages = HostPages(mem_pool_host)
            order = f"pieces of {'+'.join(map(str, self._pages.piece_bytes))}"
            page_bytes = self._pages.page_bytes
        else:
            order = "flat"
            page_bytes = mem_pool_host.get_dummy_flat_data_page().nbytes
        spec = namespace_spec(
            self._config, mem_pool_host, self._settings, order=order, page_bytes=page_bytes
        )
        if not spec.revision:
            log.warning(
                "kvtier: nothing tells the weights of %s from others of that name; put their "
                "commit into %s.kvtier.revision",
                spec.model or "this model",
                _SECTION,
            )
        self._namespace = self._client.namespace(spec)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: str) -> None:
        """Raises ValueError for models of which a page is more than one pool's."""
        if host_pool_name != PoolName.KV:
            raise ValueError(
                f"kvtier keeps the KV of models with one pool, and this one has {host_pool_name}"
            )
        super().register_mem_host_pool_v2(host_pool, host_pool_name)

    def batch_exists(self, keys: Keys, extra_info: Extra = None) -> int:
        """How many leading pages are cached; what slower tiers have of them begins to come."""

        def lookup() -> int:
            place = self._place(extra_info, keys)
            return self._known.lookup(_hashes(keys), place=place, prefetch=True).matched

        return self._attempts.attempt("found", lookup) or 0

    def exists(self, key: str) -> bool:
        """Whether a page is cached."""
        return self.batch_exists([key]) == 1

    def batch_get_v1(
        self, keys: Keys, host_indices: torch.Tensor, extra_info: Extra = None
    ) -> list[bool]:
        """Fills the pool's pages; after one that is not there no further ones are asked for."""

        def load(part: slice, pages: HostPages) -> list[int]:
            place = self._place(extra_info, keys, part.start)
            with self._known.load(_hashes(keys[part]), place=place) as loaded:
                pages.copy_out(loaded.views, host_indices[pages.tokens(part)])
                loaded.valid()  # what was overwritten meanwhile does not count
                return loaded.statuses

        return self._by_parts("loaded", keys, load, _OK)

    def batch_set_v1(
        self, keys: Keys, host_indices: torch.Tensor, extra_info: Extra = None
    ) -> list[bool]:
        """Stores the pool's pages; after one that is refused no further ones are offered. True is
        also what was there already."""

        def store(part: slice, pages: HostPages) -> list[int]:
            place = self._place(extra_info, keys, part.start)
            with self._known.reserve(_hashes(keys[part]), place=place) as reservation:
                pages.copy_in(reservation.cells, host_indices[pages.tokens(part)])
                return reservation.commit()

        return self._by_parts("stored", keys, store, _STORED)

    def get(
        self, key: str, target_location: torch.Tensor, target_sizes: object = None
    ) -> torch.Tensor | None:
        """`target_location`, filled, or None."""
        return self.batch_get([key], [target_location])[0]

    def batch_get(
        self,
        keys: Keys,
        target_locations: Sequence[torch.Tensor],
        target_sizes: object = None,
    ) -> list[torch.Tensor | None]:
        """Each of `target_locations`, flat pages in host memory, or None where it is not filled."""

        def load() -> list[int]:
            return self._known.load_into(
                _hashes(keys), list(target_locations), place=self._place(None, keys)
            )

        statuses = self._attempts.attempt("loaded", load) or []
        filled = _padded([status in _OK for status in statuses], len(keys))
        return [
            target if is_filled else None
            for target, is_filled in zip(target_locations, filled, strict=True)
        ]

    def set(
        self,
        key: str,
        value: torch.Tensor | None = None,
        target_location: object = None,
        target_sizes: object = None,
    ) -> bool:
        """Whether `value`, a flat page in host memory, is stored, or was already."""
        return value is not None and self.batch_set([key], [value])

    def batch_set(
        self,
        keys: Keys,
        values: Sequence[torch.Tensor] | None = None,
        target_locations: object = None,
        target_sizes: object = None,
    ) -> bool:
        """Whether all of `values` are stored, or were already."""

        def store() -> list[int]:
            pages = [each.contiguous() for each in values or ()]
            return self._known.store(_hashes(keys), pages, place=self._place(None, keys))

        statuses = self._attempts.attempt("stored", store) or []
        return len(statuses) == len(keys) and _STORED.issuperset(statuses)

    def clear(self) -> None:
        """A worker may not: it would empty the cache for all. Says how an operator does it."""
        spec = self._known.spec
        log.warning("kvtier: to clear it, run: kvtier invalidate %s/%s", spec.tenant, spec.name)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def _place(self, extra_info: Extra, keys: Keys, start: int = 0) -> Place:
        """Where `keys[start]` stands in its sequence, as far as SGLang says what comes before."""
        before = [*((extra_info and extra_info.prefix_keys) or ()), *keys[:start]]
        parent = bytes.fromhex(before[-1]) if before else b""
        return Place(shard=self._shard, parent=parent, position=len(before))

    @property
    def _known(self) -> Namespace:
        if self._namespace is None:
            raise RuntimeError("no host memory pool is registered")
        return self._namespace

    def _by_parts(
        self,
        what: str,
        keys: Keys,
        action: Callable[[slice, HostPages], list[int]],
        good: frozenset[int],
    ) -> list[bool]:
        """What `action` comes to for one part of the pages after the other, up to one that is not
        good as a whole."""
        done: list[bool] = []
        if (pages := self._pages) is None:
            raise RuntimeError(f"{_SECTION}.interface_v1 is not set")
        for part in parts(len(keys), pages.page_bytes, _PART_BYTES):
            statuses = self._attempts.attempt(what, partial(action, part, pages)) or []
            done += [status in good for status in statuses]
            if len(done) < part.stop or not all(done):
                break
        return _padded(done, len(keys))


def _hashes(keys: Keys) -> list[bytes]:
    """SGLang's page hashes: SHA-256 in hexadecimal digits."""
    return [bytes.fromhex(key) for key in keys]


def _padded(done: list[bool], count: int) -> list[bool]:
    return done + [False] * (count - len(done))
