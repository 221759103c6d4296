"""Hugging Face models: the KV of a prefix is kept between calls of `generate`, and shared.

    prefixes = PrefixCache(client, model, name="my-model")
    restored = prefixes.restore(input_ids)
    output = model.generate(input_ids, past_key_values=restored.cache)
    prefixes.save(output, restored.cache)

Full-attention and sliding-window layers are separate KV groups. A prefix of n blocks can be
restored if all n blocks of the full-attention layers are cached, and of the sliding ones those in
which the last window's tokens lie. A cache that `restore` returns therefore keeps every token of
the sliding layers too, for `save` to find; `cache.crop(0)` drops what no window reaches any more. A
plain `DynamicCache()` can be saved as well. A `DynamicCache(config=...)` of the caller's own has
only the last window - 1 tokens: the whole blocks among them are stored, and a prefix can be
restored if they cover what its end needs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache, PreTrainedModel

from kvtier.client.client import Client
from kvtier.client.namespace import Place
from kvtier.core.block import BlockStatus, Match, Wait
from kvtier.errors import KvtierError
from kvtier.hashing import block_hashes
from kvtier.integrations.kv_group import KvGroup, Presence, kv_groups, longest_prefix
from kvtier.integrations.model_identity import namespace_spec

log = logging.getLogger(__name__)

#: Beyond these a call would be refused; the beginning of a text is what is shared anyway.
_MOST_BLOCKS = 8192
#: Leased or reserved at a time.
_PART_BYTES = 128 << 20
#: What may go wrong without being anybody's mistake: torch raises RuntimeError without memory.
_FAILURES = (KvtierError, OSError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class Restored:
    """A cache for `generate`, the leading tokens it has, and what getting them took."""

    cache: DynamicCache
    tokens: int = 0
    size_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Saved:
    """Blocks of any group that were not cached before, and their bytes."""

    blocks: int = 0
    size_bytes: int = 0


class PrefixCache:
    """Saves and restores prefixes of one model's KV, block by block.

    `tokens_per_second` is how fast the model computes a prompt: with it, only what is read sooner
    than it would be computed is restored. Without it, slower tiers are waited for until the
    client's timeout. `revision` names the weights, for example a commit of `model.name_or_path`; if
    it is empty, all weights are read once and their digest is used. Make another PrefixCache after
    changing weights. `extra`, in the methods, is whatever else than token ids the KV depends on: an
    adapter's name, an image's digest, a salt. Texts are without padding, and their positions count
    from 0.

    Constructing raises ValueError for a model whose KV cannot be kept like this, and
    InvalidRequestError for a bad name. `restore` and `save` raise ValueError for a bad argument,
    and nothing else: if the agent is away or slow, nothing is restored or stored, and the first
    such failure in a row is logged.
    """

    def __init__(
        self,
        client: Client,
        model: PreTrainedModel,
        *,
        name: str,
        tenant: str = "default",
        revision: str = "",
        block_tokens: int = 64,
        tokens_per_second: float = 0.0,
    ) -> None:
        if block_tokens < 1:
            raise ValueError(f"block_tokens is {block_tokens}; it must be at least 1")
        self.groups = tuple(kv_groups(model, block_tokens))
        self.spec = namespace_spec(model, self.groups, name=name, tenant=tenant, revision=revision)
        self.block_tokens = block_tokens
        if not 0 <= tokens_per_second < float("inf"):
            raise ValueError(f"tokens_per_second is {tokens_per_second}; it must not be negative")
        self._block_seconds = block_tokens / tokens_per_second if tokens_per_second else 0.0
        self._patience_seconds = client.timeout_seconds
        self._config = model.config
        self._namespace = client.namespace(self.spec)
        self._failing = False

    def restore(
        self, input_ids: torch.Tensor, *, extra: bytes = b"", request_id: str = ""
    ) -> Restored:
        """The KV of the longest cached prefix of `input_ids`, [1, tokens].

        At least one token is left for the model to compute. `request_id` is the caller's name for
        the request: `kvtier requests` shows it.
        """
        started = time.perf_counter()
        ids = _row(input_ids)
        try:
            hashes = block_hashes(ids, self.block_tokens, extra=extra)
            hashes = hashes[: min((len(ids) - 1) // self.block_tokens, _MOST_BLOCKS)]
            cache, blocks, size_bytes = self._load(
                hashes, started + self._patience_seconds, request_id
            )
        except _FAILURES as error:
            self._failed("restored", error)
            return Restored(self._new_cache())
        self._failing = False
        seconds = time.perf_counter() - started
        return Restored(cache, blocks * self.block_tokens, size_bytes, seconds)

    def save(self, input_ids: torch.Tensor, cache: DynamicCache, *, extra: bytes = b"") -> Saved:
        """Stores what is not cached yet of the full blocks of `cache`, and does not change it.

        `input_ids`, [1, tokens], are the tokens that the cache was computed from; there may be more
        or fewer than it has.
        """
        ids = _row(input_ids)
        tokens = min(len(ids), *(group.tokens(cache) for group in self.groups))
        if tokens < self.block_tokens:
            return Saved()
        try:
            hashes = block_hashes(ids[:tokens], self.block_tokens, extra=extra)[:_MOST_BLOCKS]
            counts = [self._store(index, hashes, cache) for index in range(len(self.groups))]
        except _FAILURES as error:
            self._failed("stored", error)
            return Saved()
        self._failing = False
        sizes = [
            count * group.block_bytes for count, group in zip(counts, self.groups, strict=True)
        ]
        return Saved(sum(counts), sum(sizes))

    def _new_cache(self) -> DynamicCache:
        cache = DynamicCache(config=self._config)
        cache.activate_past_recording()
        return cache

    def _load(
        self, hashes: Sequence[bytes], deadline: float, request_id: str
    ) -> tuple[DynamicCache, int, int]:
        """A filled cache, its blocks, and the bytes that were read for it."""
        cache = self._new_cache()
        found = longest_prefix(self.groups, self._lookup(hashes, request_id), len(hashes))
        if not found:
            return cache, 0, 0
        states, present = [], []
        for index, group in enumerate(self.groups):
            states.append(group.states(found - group.first_needed(found)))
            present.append(self._load_group(index, hashes[:found], states[-1], deadline))
        blocks = longest_prefix(self.groups, present, found)
        size_bytes = 0
        for group, loaded, here in zip(self.groups, states, present, strict=True):
            size_bytes += int(here.sum()) * group.block_bytes
            if blocks:
                spare = (found - blocks) * self.block_tokens
                kept = loaded[:, :, :, : loaded.shape[3] - spare]
                group.fill(cache, kept, blocks * self.block_tokens)
        return cache, blocks, size_bytes

    def _lookup(self, hashes: Sequence[bytes], request_id: str) -> list[Presence]:
        """Which blocks are cached, group by group; nothing is asked once there is no prefix."""
        present: list[Presence] = []
        for index, group in enumerate(self.groups):
            here = np.zeros(len(hashes), np.bool_)
            if group.window_tokens:
                found = self._namespace.lookup(
                    hashes, place=Place(index), match=Match.PRESENCE, request_id=request_id
                )
                here[: len(found.present)] = found.present
            else:
                here[
                    : self._namespace.lookup(
                        hashes,
                        place=Place(index),
                        compute_seconds_per_block=self._block_seconds,
                        request_id=request_id,
                    ).matched
                ] = True
            present.append(here)
        return present

    def _load_group(
        self, index: int, hashes: Sequence[bytes], states: torch.Tensor, deadline: float
    ) -> Presence:
        """Copies the last blocks of `hashes` into `states`; which of all of them are there now."""
        group = self.groups[index]
        present = np.zeros(len(hashes), np.bool_)
        first = group.first_needed(len(hashes))
        # Groups share the time by their bytes, and the blocks of one share it evenly.
        share = group.block_bytes / sum(each.block_bytes for each in self.groups)
        share *= len(hashes) / max(1, len(hashes) - first)
        for part in _parts(first, len(hashes), group):
            if time.perf_counter() > deadline:
                break
            with self._namespace.load(
                hashes[part],
                place=_place(index, hashes, part),
                wait=Wait.BREAK_EVEN if self._block_seconds else Wait.ALL,
                compute_seconds_per_block=share * self._block_seconds,
            ) as loaded:
                cells = [view for view in loaded.views[: loaded.count] if view is not None]
                group.copy_blocks(cells, states, part.start - first)
                loaded.valid()  # what was overwritten meanwhile does not count any more
                count = loaded.count
            present[part.start : part.start + count] = True
            if count < part.stop - part.start:
                break
        return present

    def _store(self, index: int, hashes: Sequence[bytes], cache: DynamicCache) -> int:
        """How many blocks of a group were stored."""
        group = self.groups[index]
        first = group.first_kept(cache)
        found = self._namespace.lookup(hashes[first:], place=Place(index), match=Match.PRESENCE)
        first += (*found.present, False).index(False)
        stored = 0
        for part in _parts(first, len(hashes), group):
            place = _place(index, hashes, part)
            with self._namespace.reserve(hashes[part], place=place) as reservation:
                for block, cell in enumerate(reservation.cells, part.start):
                    if cell is not None:
                        group.write_block(cache, block, cell)
                statuses = list(reservation.commit())
            stored += statuses.count(BlockStatus.OK)
            if not {BlockStatus.OK, BlockStatus.PRESENT}.issuperset(statuses):
                break
        return stored

    def _failed(self, what: str, error: BaseException) -> None:
        level = logging.DEBUG if self._failing else logging.WARNING
        log.log(level, "kvtier: nothing is %s: %s", what, error)
        self._failing = True


def _place(index: int, hashes: Sequence[bytes], part: slice) -> Place:
    return Place(index, 0, hashes[part.start - 1] if part.start else b"", part.start)


def _parts(first: int, stop: int, group: KvGroup) -> list[slice]:
    step = max(1, _PART_BYTES // group.block_bytes)
    return [slice(start, min(start + step, stop)) for start in range(first, stop, step)]


def _row(input_ids: torch.Tensor) -> npt.NDArray[np.integer]:
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or not input_ids.shape[1]:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it must be [1, tokens]")
    row: npt.NDArray[np.integer] = input_ids[0].cpu().numpy()
    return row
