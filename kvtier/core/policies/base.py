"""The interface of eviction policies."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.residency import Residency

#: The worth of what is always admitted.
ALWAYS: Final = math.inf
#: The worth of what is not admitted even where there is room.
NEVER: Final = 0.0
#: Keys that are looked at in one turn of the event loop.
STEP: Final = 512


class Blocks(Protocol):
    """The blocks of one size class of one tier, as a policy sees them."""

    @property
    def residency(self) -> Residency: ...

    def is_evictable(self, row: int) -> bool:
        """Whether it may go now: no child in the tier, no lease, hold, reservation or pin."""
        ...


@dataclass(frozen=True)
class Context:
    """What the policies of one tier share.

    `ticks` numbers uses, so that ranks compare between size classes; `clock` gives seconds.
    """

    ticks: Iterator[int]
    clock: Callable[[], float]
    rng: random.Random


class Policy(Protocol):
    """Ranks the blocks of one size class of one tier. Blocks are named by their rows.

    The tier decides what *may* go (`Blocks.is_evictable`), the policy what goes first. A policy
    never scans all its rows: each call costs at most O(log n), amortised.
    """

    def ask(self, keys: BlockKeys) -> None:
        """Somebody looks for these blocks, and will use and store them. Asking again for the same
        before using it changes nothing."""
        ...

    def worth(self, lane: Lane, block_hash: bytes, parent: int) -> float:
        """What may make way for this block and those that continue it: blocks worth no more.

        `parent` is the row before it, or -1.
        """
        ...

    def insert(self, row: int) -> None:
        """A block was added. It becomes a candidate by `release`."""
        ...

    def touch(self, rows: Sequence[int]) -> None:
        """The blocks were used; the beginning of a prefix comes first in `rows`, and goes last."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """What continues these blocks, of one prefix, is being stored."""
        ...

    def release(self, row: int) -> None:
        """The block may have become evictable."""
        ...

    def remove(self, row: int) -> None:
        """The block is about to go, for whatever reason; then the row may be used again."""
        ...

    def victim(self, worth: float = ALWAYS) -> int:
        """The block to evict next for something worth so much, or -1. The caller removes it."""
        ...

    def coldest(self, count: int) -> list[int]:
        """Up to so many candidates, those first that would go first."""
        ...

    def rank(self, row: int) -> int:
        """When it was last used; comparable between the size classes of a tier."""
        ...


@runtime_checkable
class Asking(Protocol):
    """A policy whose `ask` costs O(n) may have this method too."""

    def asking(self, keys: BlockKeys) -> Generator[None]:
        """As `ask`, in steps of at most `STEP` keys. Anything may happen between two of them, and
        not all need be done."""
        ...


@runtime_checkable
class Refusing(Protocol):
    """A policy that lets in some blocks of a sequence and not what continues them may have this
    method too."""

    def admitted(self, lane: Lane, hashes: Sequence[bytes]) -> int:
        """How many of the leading ones may be stored at all."""
        ...


@runtime_checkable
class Marking(Protocol):
    """A policy may have this method too."""

    def mark(self, row: int) -> None:
        """The block ends a part that many sequences share, as a worker says: a system prompt, a
        document. It may be said again."""
        ...
