"""Blocks on their way to HOST."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kvtier.agent.moving.job_queue import Kind, Ticket
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import Lane
from kvtier.tiers.size_class import SizeClass

if TYPE_CHECKING:
    from kvtier.agent.moving.source import Source


class Origin(Protocol):
    """A block in a slower tier, kept there until it is dropped."""

    @property
    def is_current(self) -> bool:
        """Whether it is still wanted: not evicted on request since."""
        ...

    def drop(self) -> None: ...


@dataclass(eq=False)
class Flight:
    """One block on its way. Whoever joined it leaves it with `Promotion.leave`.

    Until all have left, its slot in HOST stays in use, so that the block cannot be evicted before
    it is leased. `answer` is whether it arrived. It is a load, or a prefetch until a load joins it;
    `wishes` counts the prefetches that want it. One that `goes_on` is wanted when nobody waits for
    it any more.
    """

    namespace: Namespace
    host: SizeClass
    source: Source
    origin: Origin
    lane: Lane
    block_hash: bytes
    slot: int
    answer: asyncio.Future[bool]
    users: int = 0
    landed: bool = False
    kind: Kind = Kind.READ
    is_ahead: bool = False
    wishes: int = 0
    goes_on: bool = False
    fetch: Fetch | None = None
    begun_at: float = field(default_factory=time.monotonic)
    #: Set by the source, as `Lifetimes` counts; None: now.
    stored_at: int | None = None

    @property
    def is_wanted(self) -> bool:
        return self.goes_on or self.users > 0 or self.wishes > 0

    @property
    def has_arrived(self) -> bool:
        return self.answer.done() and self.answer.result()


class Fetch:
    """The call that fills the slots of some flights; its `ticket` goes to the mover."""

    def __init__(self, flights: Sequence[Flight]) -> None:
        self.flights = flights
        self.ticket = Ticket(min(flight.kind for flight in flights))
        for flight in flights:
            flight.fetch = self

    def drop_if_unwanted(self) -> None:
        if not any(flight.is_wanted for flight in self.flights):
            self.ticket.drop()
