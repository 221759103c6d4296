"""Prefixes of one model's KV."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from kvtier.client.client import Client
from kvtier.client.namespace import Place
from kvtier.core.block import BlockStatus, Match, Wait
from kvtier.errors import KvtierError
from kvtier.hashing import block_hashes
from kvtier.integrations.attempts import Attempts
from kvtier.integrations.parts import parts
from kvtier.integrations.transformers.kv_group import Presence, kv_groups
from kvtier.integrations.transformers.kvtier_cache import KvtierCache, Saved
from kvtier.integrations.transformers.model_identity import namespace_spec
from kvtier.integrations.transformers.prompts import Prompt, check_ids, paddings, prompts
from kvtier.integrations.transformers.reach import Row, longest

log = logging.getLogger(__name__)

#: Beyond these a call would be refused; the beginning of a text is what is shared anyway.
_MOST_BLOCKS = 8192
#: Leased or reserved at a time.
_PART_BYTES = 128 << 20


class PrefixCache:
    """Saves and restores prefixes of one model's KV, block by block.

    Full-attention and sliding-window layers are separate KV groups. A prefix of n tokens can be
    restored if all its blocks of the full-attention layers are cached, and of the sliding ones
    those in which the last window's tokens lie.

    `tokens_per_second` is how fast the model computes a prompt: with it, only what is read sooner
    than it would be computed is restored. Without it, slower tiers are waited for until the
    client's timeout. `revision` names the weights, for example a commit of `model.name_or_path`; if
    it is empty, all weights are read once and their digest is used. Make another PrefixCache after
    changing weights. `extra`, in the methods, is whatever else than token ids the KV depends on: an
    adapter's name, an image's digest, a salt. The positions of a text count from 0 at its first
    token, as `generate` counts them where a batch is padded on the left.

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
        places = {device for group in self.groups for device in group.devices}
        self._device = places.pop() if len(places) == 1 else torch.device("cpu")
        if self._device.type != "cpu":
            with suppress(KvtierError):  # HOST serves it all the same
                client.use_device(self._device)
        self._namespace = client.namespace(self.spec)
        self._attempts = Attempts(log)

    def restore(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        extra: bytes = b"",
        request_id: str = "",
    ) -> KvtierCache:
        """A cache with the KV of the longest cached prefix of `input_ids`, [rows, tokens].

        Rows of a batch are padded on the left, as their `attention_mask` says; all have equally
        many positions restored. At least one token is left for the model to compute. `request_id`
        is the caller's name for the request: `kvtier requests` shows it.
        """
        started = time.perf_counter()
        check_ids(input_ids)
        padded = paddings(input_ids, attention_mask)
        cache = KvtierCache(self._config, partial(self._save, padded=padded, extra=extra))
        batch = prompts(input_ids, padded)

        def load() -> None:
            rows = [Row(prompt, self._hashes(prompt, extra), self.groups) for prompt in batch]
            for row in rows:
                self._lookup(row, request_id)
            self._load(rows, cache, input_ids.shape[1] - 1, started + self._patience_seconds)

        self._attempts.attempt("restored", load)
        cache.restored_seconds = time.perf_counter() - started
        return cache

    def save(
        self,
        input_ids: torch.Tensor,
        cache: DynamicCache,
        attention_mask: torch.Tensor | None = None,
        *,
        extra: bytes = b"",
    ) -> Saved:
        """As `KvtierCache.save`, for a cache of the caller's own.

        `input_ids`, [rows, tokens], are the tokens that the cache was computed from; there may be
        more or fewer than it has. A plain `DynamicCache()` keeps every token. A
        `DynamicCache(config=...)` has only the last window - 1 tokens of sliding layers: the whole
        blocks among them are stored, and a prefix can be restored if they cover what its end needs.
        """
        check_ids(input_ids)
        padded = paddings(input_ids, attention_mask)
        return self._save(input_ids, cache, padded=padded, extra=extra)

    def _save(
        self, input_ids: torch.Tensor, cache: DynamicCache, *, padded: Sequence[int], extra: bytes
    ) -> Saved:
        batch = prompts(input_ids, padded)
        length = min(group.length(cache, len(batch)) for group in self.groups)

        def store() -> Saved:
            saved = Saved()
            for row, prompt in enumerate(batch):
                known = Prompt(prompt.ids[: prompt.tokens(length)], prompt.padding)
                if not (hashes := self._hashes(known, extra)):
                    continue
                for index, group in enumerate(self.groups):
                    blocks = self._store(index, hashes, cache, row, prompt.padding)
                    size_bytes = blocks * group.block_bytes
                    saved = Saved(saved.blocks + blocks, saved.size_bytes + size_bytes)
            return saved

        return self._attempts.attempt("stored", store) or Saved()

    def _hashes(self, prompt: Prompt, extra: bytes) -> list[bytes]:
        """Of its full blocks."""
        if len(prompt.ids) < self.block_tokens:
            return []
        return block_hashes(prompt.ids, self.block_tokens, extra=extra)[:_MOST_BLOCKS]

    def _load(self, rows: list[Row], cache: KvtierCache, most: int, deadline: float) -> None:
        """Fills the cache with what all rows have, at most so many positions."""
        if not (wanted := longest(rows, most)):
            return
        states = [group.states(len(rows), wanted, self._device) for group in self.groups]
        for number, row in enumerate(rows):
            for index, room in enumerate(states):
                loaded = self._load_group(index, row, wanted, room[:, :, number], deadline)
                cache.restored_bytes += int(loaded.sum()) * self.groups[index].block_bytes
                row.present[index] = loaded
        length = wanted
        if not all(row.has(wanted) for row in rows):
            for row in rows:
                row.forget_clipped(wanted)
            length = longest(rows, most)
        if length:
            for group, room in zip(self.groups, states, strict=True):
                group.fill(cache, room, wanted, length)
            cache.restored_tokens = length

    def _lookup(self, row: Row, request_id: str) -> None:
        """Which blocks are cached, group by group; nothing is asked once there is no prefix."""
        for index, group in enumerate(self.groups):
            here = row.present[index]
            if group.window_tokens:
                found = self._namespace.lookup(
                    row.hashes, place=Place(index), match=Match.PRESENCE, request_id=request_id
                )
                here[: len(found.present)] = found.present
            else:
                here[
                    : self._namespace.lookup(
                        row.hashes,
                        place=Place(index),
                        compute_seconds_per_block=self._block_seconds,
                        request_id=request_id,
                    ).matched
                ] = True

    def _load_group(
        self, index: int, row: Row, length: int, room: torch.Tensor, deadline: float
    ) -> Presence:
        """Copies a row's blocks of a group into `room`; which of all of them are there now."""
        group, present = self.groups[index], np.zeros(len(row.hashes), np.bool_)
        needed = row.needed(index, length)
        # Groups share the time by their bytes, and the blocks of one share it evenly.
        share = group.block_bytes / sum(each.block_bytes for each in self.groups)
        share *= needed.stop / max(1, needed.stop - needed.start)
        for part in parts(needed.stop, group.block_bytes, _PART_BYTES, needed.start):
            if time.perf_counter() > deadline:
                break
            with self._namespace.load(
                row.hashes[part],
                place=_place(index, row.hashes, part),
                wait=Wait.BREAK_EVEN if self._block_seconds else Wait.ALL,
                compute_seconds_per_block=share * self._block_seconds,
            ) as loaded:
                for block, cell in enumerate(loaded.views[: loaded.count], part.start):
                    assert cell is not None
                    group.copy_block(cell, block, room, row.prompt.padding, length)
                loaded.valid()  # what was overwritten meanwhile does not count any more
                count = loaded.count
            present[part.start : part.start + count] = True
            if count < part.stop - part.start:
                break
        return present

    def _store(
        self, index: int, hashes: Sequence[bytes], cache: DynamicCache, row: int, padding: int
    ) -> int:
        """How many blocks of a group of one row were stored."""
        group = self.groups[index]
        first = group.first_kept(cache, padding)
        if first >= len(hashes):
            return 0
        found = self._namespace.lookup(hashes[first:], place=Place(index), match=Match.PRESENCE)
        first += (*found.present, False).index(False)
        stored = 0
        for part in parts(len(hashes), group.block_bytes, _PART_BYTES, first):
            place = _place(index, hashes, part)
            with self._namespace.reserve(hashes[part], place=place) as reservation:
                for block, cell in enumerate(reservation.cells, part.start):
                    if cell is not None:
                        group.write_block(cache, block, cell, row, padding)
                statuses = list(reservation.commit())
            stored += statuses.count(BlockStatus.OK)
            if not {BlockStatus.OK, BlockStatus.PRESENT}.issuperset(statuses):
                break
        return stored


def _place(index: int, hashes: Sequence[bytes], part: slice) -> Place:
    return Place(index, 0, hashes[part.start - 1] if part.start else b"", part.start)
