"""One request, as the scheduler's side follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvtier.core.block import Tier


@dataclass(frozen=True)
class Found:
    """The answer to a lookup: tokens `first` to `end` can be loaded.

    `tiers` has the tier of each block, from `first` on, of the group that reaches all tokens;
    `holds` the hold of each group, by its number. Good until `expires`.
    """

    first: int
    end: int
    expires: float
    tiers: tuple[Tier, ...] = ()
    holds: Mapping[int, int] = field(default_factory=dict)


@dataclass
class RequestState:
    """`request` is vLLM's own, whose block hashes grow with it.

    `stored` has the block up to which stores are planned, for each group; `known_tokens` were there
    before anything was computed, None until then.
    """

    request: Any
    stored: list[int]
    known_tokens: int | None = None
    found: Found | None = None
    asked: bool = False
    loading: bool = False
    load_tried: bool = False
    preemptions: int = 0
    has_stores: bool = False
    sources: dict[Tier, int] = field(default_factory=dict)

    def notice_preemption(self) -> None:
        """A preempted request begins anew: its blocks are gone, its stores may be cancelled."""
        if self.request.num_preemptions != self.preemptions:
            self.preemptions = self.request.num_preemptions
            self.stored = [0] * len(self.stored)
            self.known_tokens = None
            self.found = None
            self.load_tried = False
