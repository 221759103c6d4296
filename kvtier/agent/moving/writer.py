"""Blocks of HOST on their way to a slower tier."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kvtier.agent.turns import background_line
from kvtier.core.block import BlockKey, BlockKeys, Tier
from kvtier.core.latency import Latency
from kvtier.tiers.size_class import SizeClass

_MOST_REFUSED = 1 << 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block of HOST that is to be written. It may move to another slot, or go, before that."""

    host: SizeClass
    row: int
    block_hash: bytes

    @property
    def is_current(self) -> bool:
        return self.host.residency.describe(self.row)[1] is self.block_hash


@dataclass(frozen=True, slots=True)
class Taken:
    """A block and the slot in HOST that is in use for it; the block itself may move to another."""

    host: SizeClass
    row: int
    key: BlockKey
    slot: int
    #: As `Lifetimes` counts.
    stored_at: int
    begun_at: float = field(default_factory=time.monotonic)

    @property
    def is_current(self) -> bool:
        """Whether it has not been evicted on request since."""
        return self.host.residency.describe(self.row)[1] is self.key.block_hash


class Writer(ABC):
    """Writes batches of blocks of one size class.

    The slots in HOST stay in use until a write has really ended. `on_end` is told when a batch
    leaves room for another. A subclass calls `_end` once for each block that it was given.
    """

    tier: ClassVar[Tier]

    def __init__(self) -> None:
        self.on_end: Callable[[], None] = lambda: None
        self._writing: set[tuple[SizeClass, int]] = set()
        #: Given up, and not ended yet.
        self._overdue: set[tuple[SizeClass, int]] = set()
        self._batches: set[asyncio.Task[None]] = set()
        self._erasing: set[asyncio.Task[None]] = set()
        #: Blocks that the tier did not admit, with their hashes.
        self._refused: dict[tuple[SizeClass, int], bytes] = {}
        self.in_flight_bytes = 0
        #: Of blocks that were written, by their class in HOST.
        self.writes: defaultdict[SizeClass, Latency] = defaultdict(Latency)
        #: Blocks, whatever became of them.
        self.ended_count = 0
        self.failed_count = 0
        #: Blocks that were evicted while they were written, and that are still there.
        self.unerased_count = 0

    @property
    @abstractmethod
    def is_writable(self) -> bool: ...

    @abstractmethod
    def require_writable(self) -> None:
        """Raises OSError that says why it is not."""

    @property
    @abstractmethod
    def written_bytes(self) -> int: ...

    @abstractmethod
    def would_take(self, host: SizeClass, keys: BlockKeys, index: int) -> bool:
        """Whether the tier would keep a block that HOST is to store, for what it is worth there."""

    @abstractmethod
    def has(self, host: SizeClass, row: int) -> bool:
        """Whether the tier has a block of HOST."""

    @abstractmethod
    async def _write(self, host: SizeClass, blocks: list[Taken]) -> None: ...

    @abstractmethod
    async def sync(self) -> None:
        """Makes durable what was written. Raises OSError; what was at stake counts as lost."""

    @property
    def has_overdue(self) -> bool:
        """Whether writes hang of which nobody knows how they will end."""
        return bool(self._overdue)

    def was_refused(self, host: SizeClass, row: int) -> bool:
        """Whether the tier did not admit a block of HOST; it may when the block is used again."""
        refused = self._refused.get((host, row))
        return refused is not None and host.residency.describe(row)[1] is refused

    def forget_refusal(self, host: SizeClass, row: int) -> bool:
        """Whether there was one."""
        if not self._refused:
            return False
        was_refused = self.was_refused(host, row)
        self._refused.pop((host, row), None)
        return was_refused

    def _refuse(self, blocks: Sequence[Taken]) -> None:
        """They are not written, and that is no failure."""
        if len(self._refused) > _MOST_REFUSED:
            self._refused.clear()  # they are offered once more
        self._refused.update({(each.host, each.row): each.key.block_hash for each in blocks})
        self._end(blocks)

    def is_writing(self, host: SizeClass, row: int) -> bool:
        return (host, row) in self._writing

    @property
    def batches(self) -> set[asyncio.Task[None]]:
        """What is being written now."""
        return set(self._batches)

    def start(self, host: SizeClass, blocks: Sequence[Candidate]) -> None:
        """Begins to write blocks that are current and not being written."""
        slots = host.acquire([block.row for block in blocks])
        self._writing.update((host, block.row) for block in blocks)
        self.in_flight_bytes += len(blocks) * host.slot_bytes
        taken = [
            Taken(
                host,
                block.row,
                host.residency.key(block.row),
                slot,
                host.lifetimes.stored_at(block.row),
            )
            for block, slot in zip(blocks, slots, strict=True)
        ]
        spawn(self._write_in_turn(host, taken), self._batches)

    async def _write_in_turn(self, host: SizeClass, blocks: list[Taken]) -> None:
        """A store may begin dozens of batches; who looks something up is not behind all of them."""
        await background_line().begin()
        await self._write(host, blocks)

    def _give_up(self, blocks: Iterable[Taken]) -> None:
        """Those that have not ended are overdue."""
        self._overdue |= {(block.host, block.row) for block in blocks} & self._writing

    def _end(self, blocks: Sequence[Taken]) -> None:
        ended = [(block.host, block.row) for block in blocks]
        self._writing.difference_update(ended)
        self._overdue.difference_update(ended)
        for block in blocks:
            block.host.release([block.slot])
            self.ended_count += 1
            self.in_flight_bytes -= block.host.slot_bytes
        self.on_end()

    def _note_written(self, block: Taken) -> None:
        """The tier has it now, and had not before."""
        self.writes[block.host].observe(time.monotonic() - block.begun_at)

    async def settled(self) -> None:
        """Returns when what is being written now has been; it goes on if the caller does not."""
        for tasks in (self._batches, self._erasing):
            if tasks:
                await asyncio.wait(tasks)

    async def close(self) -> None:
        """Ends what is under way; what is in a thread's hands completes."""
        work = [*self._batches, *self._erasing]
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


def spawn(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
    """Runs it as a task that is kept until its end."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
