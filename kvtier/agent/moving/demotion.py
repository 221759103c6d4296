"""From HOST to a slower tier, in the background."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum

from kvtier.agent.moving.writer import Candidate, Writer
from kvtier.agent.turns import READ_SLICE, WRITE_SLICE, data_slices
from kvtier.core.block import BlockKeys
from kvtier.core.residency import NONE
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass

#: What one thread checksums and writes at a time.
_WRITE_BYTES = 8 << 20
_MOST_BLOCKS = 256
_MOST_WAITING = 1 << 16
#: Of `on_evict`: the share of HOST's slots whose blocks are written ahead of their eviction.
_AHEAD_SHARE = 8


class WritePolicy(Enum):
    """When a block of HOST is written to a slower tier."""

    THROUGH = "through"
    ON_EVICT = "on_evict"
    AFTER_HITS = "after_hits"


class Demotion:
    """Chooses blocks of HOST by a policy and has them written; stores never wait for it.

    At most `max_in_flight_bytes` of HOST are kept in use by it. What waits beyond 65,536 blocks, or
    while the tier cannot be written to, is looked for again later; what has left HOST by then is
    not there.
    """

    def __init__(
        self,
        host: HostTier,
        writer: Writer,
        *,
        policy: WritePolicy = WritePolicy.THROUGH,
        after_hits: int = 2,
        max_in_flight_bytes: int = 256 << 20,
    ) -> None:
        self._host = host
        self._writer = writer
        self._policy = policy
        self._after_hits = after_hits
        self._max_in_flight_bytes = max_in_flight_bytes
        self._waiting: deque[Candidate | asyncio.Future[None]] = deque()
        self._waiting_bytes = 0
        self._hits: Counter[tuple[SizeClass, int, int]] = Counter()
        self._is_behind = False
        self._is_open = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.unwritten_count = 0
        self._flush_count = 0
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._awaited_count = 0
        #: Whether there is room for it beside what workers wait for; else `go_on` is called later.
        self.may_go_on: Callable[[], bool] = lambda: True
        writer.on_end = self._pump

    def open(self) -> None:
        """From now on the tier may be written to."""
        self._is_open = True
        self.catch_up()

    @property
    def is_writable(self) -> bool:
        return self._is_open and self._writer.is_writable

    @property
    def waiting_bytes(self) -> int:
        """What is chosen and not written yet; blocks that have left HOST since are still in it."""
        return self._waiting_bytes + self._writer.in_flight_bytes

    def would_take(self, host: SizeClass, keys: BlockKeys, index: int) -> bool:
        """Whether a block of HOST that is to be stored would be written as well, without a hit."""
        is_asked = self._policy is not WritePolicy.AFTER_HITS and self.is_writable
        return is_asked and self._writer.would_take(host, keys, index)

    # Choosing.

    def stored(self, host: SizeClass, slots: Iterable[int]) -> None:
        """Blocks were committed in these slots."""
        if self._policy is WritePolicy.THROUGH:
            owner = host.table.owner
            self._add(host, [owner[slot] for slot in slots])
        elif self._policy is WritePolicy.ON_EVICT:
            self._add_coldest(host)

    def used(self, host: SizeClass, rows: Iterable[int]) -> None:
        """Blocks were loaded."""
        rows = list(rows)
        refused = [row for row in rows if self._writer.forget_refusal(host, row)]
        if self._policy is WritePolicy.THROUGH and refused:
            self._add(host, refused)
        if self._policy is not WritePolicy.AFTER_HITS:
            return
        if len(self._hits) > _MOST_WAITING:
            self._hits.clear()  # they start from zero; nothing is lost but time
        generations, slot = host.table.generations, host.residency.slot
        due = []
        for row in rows:
            block = (host, row, generations[slot[row]])
            self._hits[block] += 1
            if self._hits[block] == self._after_hits:
                due.append(row)
                del self._hits[block]
        self._add(host, due)

    def _add_coldest(self, host: SizeClass) -> None:
        """What is next to go, once HOST is nearly full, and the prefixes before it."""
        slots = host.extent_bytes // host.slot_bytes
        ahead = max(1, slots // _AHEAD_SHARE)
        if host.free_slots > ahead or self._host.can_grow(host):
            return
        rows: dict[int, None] = {}
        for row in host.policy.coldest(ahead):
            while row != NONE and row not in rows and len(rows) < ahead:
                rows[row] = None
                row = host.residency.parent(row)
        self._add(
            host,
            [
                row
                for row in rows
                if not self._is_chosen(host, row) and not self._writer.was_refused(host, row)
            ],
        )

    def _is_chosen(self, host: SizeClass, row: int) -> bool:
        return self._writer.is_writing(host, row) or self._writer.has(host, row)

    def _add(self, host: SizeClass, rows: Iterable[int]) -> bool:
        """Whether they will be written."""
        if not self.is_writable or len(self._waiting) >= _MOST_WAITING:
            self._is_behind = True
            return False
        describe, slot = host.residency.describe, host.residency.slot
        # A block may have left its row while its turn was waited for.
        chosen = [
            Candidate(host, row, describe(row)[1]) for row in rows if row >= 0 and slot[row] != NONE
        ]
        self._waiting.extend(chosen)
        self._waiting_bytes += len(chosen) * host.slot_bytes
        self._pump()
        return True

    def tier_turned(self) -> None:
        """The tier is good or bad now."""
        if self.is_writable:
            self.catch_up()
        else:
            self._drop()

    def _drop(self) -> None:
        """What waits cannot be written now; it is looked for again."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        self._is_behind = True
        for each in waiting:
            if isinstance(each, asyncio.Future) and not each.done():
                each.set_exception(OSError("it cannot be written to"))

    def catch_up(self) -> None:
        """Looks for what should be there and was not written when its time came."""
        if self._is_behind and self._policy is WritePolicy.THROUGH and self.is_writable:
            self._is_behind = False
            task = asyncio.get_running_loop().create_task(self._add_all())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _add_all(self) -> None:
        """Every block of HOST that is not there."""
        for host in self._host.classes:
            residency = host.residency
            async for part in data_slices(residency.row_count, WRITE_SLICE):
                while len(self._waiting) >= _MOST_WAITING and self._writer.batches:
                    await asyncio.wait(self._writer.batches, return_when=asyncio.FIRST_COMPLETED)
                rows = [
                    row
                    for row in range(part.start, part.stop)
                    if residency.slot[row] != NONE and not self._writer.has(host, row)
                ]
                if rows and not self._add(host, rows):
                    return

    # Writing.

    def go_on(self) -> None:
        """There may be room again."""
        if self._is_open:
            self._pump()

    def _pump(self) -> None:
        """Starts to write what waits, within the bound."""
        if not self.is_writable:
            self._drop()
            return
        looked_at = 0
        while self._waiting and self._writer.in_flight_bytes < self._max_in_flight_bytes:
            if not self._awaited_count and not self.may_go_on():
                return
            head = self._waiting[0]
            if isinstance(head, asyncio.Future):
                self._waiting.popleft()
                self._tell(head)
                continue
            blocks, seen = self._next_blocks(head.host)
            if blocks:
                self._writer.start(head.host, blocks)
            looked_at += seen
            if looked_at >= READ_SLICE and self._waiting:
                asyncio.get_running_loop().call_soon(self._pump)
                return
        if not self._waiting:
            self.catch_up()

    def _tell(self, done: asyncio.Future[None]) -> None:
        """All that was chosen before is being written: says so when it has been."""

        async def tell() -> None:
            await self._writer.settled()
            if not done.done():
                done.set_result(None)

        task = asyncio.get_running_loop().create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _next_blocks(self, host: SizeClass) -> tuple[list[Candidate], int]:
        """Blocks of one class to be written together; and how many were looked at."""
        blocks: dict[int, Candidate] = {}
        seen = 0
        room = self._max_in_flight_bytes - self._writer.in_flight_bytes
        most = max(1, min(_MOST_BLOCKS, min(_WRITE_BYTES, room) // host.slot_bytes))
        while self._waiting and seen < READ_SLICE and len(blocks) < most:
            block = self._waiting[0]
            if isinstance(block, asyncio.Future) or block.host is not host:
                break
            self._waiting.popleft()
            self._waiting_bytes -= host.slot_bytes
            seen += 1
            if not block.is_current:
                self.unwritten_count += 1
            elif not self._is_chosen(host, block.row):
                blocks[block.row] = block
        return list(blocks.values()), seen

    async def write(self, host: SizeClass, rows: Sequence[int]) -> None:
        """Blocks are about to leave HOST: returns when those that are to be on the tier are there,
        or cannot be. A policy that waits for hits wants none of them."""
        if self._policy is WritePolicy.AFTER_HITS or not self.is_writable:
            return
        missing = [row for row in rows if not self._writer.has(host, row)]
        if missing and self._add(host, missing):
            with suppress(OSError):
                await self._write_all()

    async def _write_all(self) -> None:
        """Returns when all that waits has been written, whatever calls are under way; OSError if it
        cannot be."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._awaited_count += 1
        try:
            self._pump()
            await done
        finally:
            self._awaited_count -= 1

    async def flushed(self) -> None:
        """Returns when no flush is under way: what has left HOST by then is there."""
        await self._flushed.wait()

    async def flush(self) -> int:
        """Returns when every block that HOST has now, and that is admitted, is there and synced:
        bytes written.

        Raises OSError if that cannot be.
        """
        if not self._is_open:
            raise OSError("what is there is still being looked for")
        self._flush_count += 1
        self._flushed.clear()
        try:
            return await self._flush()
        finally:
            self._flush_count -= 1
            if not self._flush_count:
                self._flushed.set()

    async def _flush(self) -> int:
        writer = self._writer
        writer.require_writable()
        failed, written = writer.failed_count, writer.written_bytes
        self._is_behind = False
        await self._add_all()
        try:
            await self._write_all()
        finally:
            writer.require_writable()
        if self._is_behind or writer.has_overdue or writer.failed_count > failed:
            raise OSError("some blocks could not be written")
        await writer.sync()
        return writer.written_bytes - written

    async def close(self) -> None:
        """Chooses nothing more."""
        self._is_open = False
        self._waiting.clear()
        self._waiting_bytes = 0
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
