"""Where blocks of HOST come from."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from kvtier.agent.moving.flight import Flight, Origin
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import Lane, Tier
from kvtier.tiers.size_class import Counters

if TYPE_CHECKING:
    from kvtier.agent.moving.promotion import Promotion


class Expectation(Protocol):
    """An estimate that grows with what is asked for."""

    def add(self, lane: Lane, hashes: Sequence[bytes]) -> float:
        """Seconds until these, and all that were added before, could be read from HOST, if they
        were asked for now."""
        ...


class Source(Protocol):
    """A tier from which blocks are brought."""

    @property
    def tier(self) -> Tier: ...

    @property
    def is_remote(self) -> bool:
        """Whether it knows only what it has learned."""
        ...

    async def learn(
        self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes], *, is_prefix: bool
    ) -> None:
        """Finds out which blocks it has: the leading ones at least, if a prefix is asked. Returns
        within a time of its own, whether it knows then or not."""
        ...

    def has(self, namespace: Namespace, lane: Lane, hashes: Sequence[bytes]) -> list[bool]:
        """Which blocks it can give now, as far as it is known."""
        ...

    def claim(self, namespace: Namespace, lane: Lane, block_hash: bytes) -> Origin | None:
        """Keeps a block until the origin is dropped; None if it is not there any more."""
        ...

    def read(
        self, promotion: Promotion, flights: Sequence[Flight]
    ) -> Iterable[Coroutine[Any, Any, None]]:
        """Work that fills the slots of flights and ends with `Promotion.land` for each of them.

        What waits in vain for a device calls `Promotion.give_up` before.
        """
        ...

    def expect(self, namespace: Namespace) -> Expectation:
        """Of nothing yet."""
        ...

    def first_blocks(self, namespace: Namespace, lane: Lane) -> int:
        """How many blocks of a read arrive together, and first."""
        ...

    def seconds_until_learned(self) -> float:
        """The estimate of how long `learn` takes."""
        ...

    @property
    def measured_at(self) -> float:
        """When the latest read ended, on the clock of `time.monotonic`."""
        ...

    def seconds_until_landed(self) -> float:
        """The estimate of when what is under way now has arrived."""
        ...

    def counters(self, namespace: Namespace, group: int) -> Counters: ...
