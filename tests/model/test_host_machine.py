"""Any sequence of calls, and of deaths between and during them, against a model.

The agent's own parts run in this process on real memory; only time and the movers' threads are
stepped, so that a failure repeats. Every block's bytes are derived from its key and from who wrote
it, and every byte that a reader may accept is judged after every step.

`KVTIER_EXAMPLES=5000 pytest tests/model` looks further.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import xxhash
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtier.agent.placing.evicting import evict
from kvtier.agent.sessions.grants import Granted
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.sessions.sessions import Attachment, Session
from kvtier.core.block import BlockStatus, Lane, Match, Tier
from kvtier.core.lease import LeaseKind
from kvtier.errors import SessionLostError
from kvtier.tiers.size_class import SizeClass
from tests.model.node import Node
from tests.model.records import (
    FORKS,
    LANES,
    LENGTH,
    SPECS,
    Cell,
    Key,
    Path,
    Reading,
    Writing,
    all_keys,
    cell_at,
    overlap,
    payload,
    writer_of,
)

WORKERS = 3
OK, ABSENT, PRESENT = BlockStatus.OK, BlockStatus.ABSENT, BlockStatus.PRESENT
REFUSED, EXPIRED, MISMATCH = BlockStatus.REFUSED, BlockStatus.EXPIRED, BlockStatus.DIGEST_MISMATCH

Call = tuple[Any, ...]

workers = st.integers(0, WORKERS - 1)
seconds = st.sampled_from([0.0, 0.5, 4.0, 20.0])
digests = st.sampled_from(["none", "right", "wrong"])
turns = st.integers(0, 3)


@st.composite
def paths(draw: st.DrawFn) -> Path:
    space = draw(st.integers(0, len(SPECS) - 1))
    lane = draw(st.sampled_from(LANES[space]))
    start = draw(st.sampled_from([0, 0, 0, 0, 2, 5]))
    count = LENGTH - start - draw(st.sampled_from([0, 0, 0, 1, 3, 6])) % (LENGTH - start)
    return Path(space, lane, draw(st.integers(0, len(FORKS) - 1)), start, count)


#: Of HOST, in pages: from less than an extent to more than all blocks take.
sizes = st.sampled_from([4, 8, 12, 20, 24, 30, 44, 80, 160])
#: What may happen side by side: a method's name and its arguments.
calls = st.one_of(
    st.tuples(st.just("store"), workers, paths(), digests),
    st.tuples(st.just("store"), workers, paths(), digests),
    st.tuples(st.just("reserve_and_write"), workers, paths(), seconds),
    st.tuples(st.just("commit_some"), st.integers(0, 7), digests),
    st.tuples(st.just("load"), workers, paths(), st.booleans(), seconds),
    st.tuples(st.just("hold"), workers, paths(), st.booleans(), seconds),
    st.tuples(st.just("evict"), paths()),
    st.tuples(st.just("end_reservation"), st.integers(0, 7)),
    st.tuples(st.just("disconnect"), workers),
    st.tuples(st.just("die"), workers),
    st.tuples(st.just("resize"), sizes),
)


class HostMachine(RuleBasedStateMachine):
    """The model: `committed` has the version of each key's bytes for as long as it may be found."""

    node: Node

    @initialize(
        pages=st.sampled_from([24, 30, 44]),
        before=turns,
        after=turns,
        first=st.lists(paths(), min_size=3, max_size=6),
    )
    def start(self, pages: int, before: int, after: int, first: list[Path]) -> None:
        self.node = Node(pages * 4096)
        self.node.mover.turns_before, self.node.mover.turns_after = before, after
        self.attachments: dict[int, Attachment] = {}
        self.sessions: dict[tuple[int, int], Session] = {}
        self.committed: dict[Key, int] = {}
        self.present: dict[Key, int] = {}
        self.evicted: set[tuple[Key, int]] = set()
        self.readings: list[Reading] = []
        self.holds: list[Reading] = []
        self.writings: list[Writing] = []
        self.generations: set[int] = set()
        self.version = 0
        self.flushed = False
        # Both exist from the start, so that every key has a size class.
        for space in range(len(SPECS)):
            self.session(0, space)
        for path in first:
            self.run(self.store(0, path, "none"))

    def session(self, worker: int, space: int) -> Session:
        attachment = self.attachments.get(worker)
        if attachment is None or not attachment.connected:
            attachment = self.attachments[worker] = self.node.attach(bytes([worker]) * 16)
            # A client attaches again only when it has unmapped what it had.
            self.writings = [each for each in self.writings if not self.was_of(each, worker)]
        session = self.sessions.get((worker, space))
        if session is None or session.attachment is not attachment:
            session, _ = self.node.sessions.open(attachment.token, SPECS[space], "")
            self.sessions[worker, space] = session
        return session

    def was_of(self, writing: Writing, worker: int) -> bool:
        old = writer_of(writing)
        return old.client_id == bytes([worker]) * 16 and not old.connected

    def namespace(self, key: Key | Path) -> Namespace:
        return list(self.node.namespaces)[key.space]

    def size_class(self, key: Key | Path) -> SizeClass:
        return self.session_groups[key.space][key.lane.group]

    @property
    def session_groups(self) -> list[tuple[SizeClass, ...]]:
        return [namespace.groups for namespace in self.node.namespaces]

    def find(self, key: Key) -> Cell | None:
        """Where the tier has a block."""
        size_class = self.size_class(key)
        row = size_class.residency.find(key.lane, key.block_hash)
        return None if row < 0 else self.cell(size_class, size_class.residency.slot[row])

    def cell(self, size_class: SizeClass, slot: int) -> Cell:
        table = size_class.table
        extent = table.extent_of(slot)
        return cell_at(table, extent, slot - extent.base, table.generations[slot])

    def granted_cell(self, path: Path, granted: Granted, index: int) -> Cell | None:
        """The slot of an answer, found as a worker finds it: by its extent's id."""
        if granted.statuses[index] != OK:
            assert (granted.extents[index], granted.generations[index]) == (0, 0)
            return None
        size_class = self.size_class(path)
        extent = next(e for e in size_class.extents if e.extent_id == granted.extents[index])
        cell = cell_at(size_class.table, extent, granted.slots[index], granted.generations[index])
        cell.extent.holders.add(granted.lease.session_id)
        return cell

    # Calls. Each updates the model in the turn in which the agent's answer arrives.

    async def reserve(self, worker: int, path: Path, ttl: float = 0.0) -> Writing | None:
        session = self.session(worker, path.space)
        granted = await self.node.storing.reserve(session, [path.block_keys], ttl_seconds=ttl)
        keys, statuses = path.keys, granted.statuses
        assert len(statuses) == len(keys)
        assert set(statuses) <= {OK, PRESENT, REFUSED}
        if REFUSED in statuses:
            assert OK not in statuses[statuses.index(REFUSED) :], "not a prefix"
        cells = [self.granted_cell(path, granted, index) for index in range(len(keys))]
        taken = [cell for cell in cells if cell]
        for cell in taken:
            assert cell.generation
            assert cell.generation not in self.generations
            self.generations.add(cell.generation)
        for other in self.writings:
            assert not overlap(taken, [cell for cell in other.cells if cell]), "handed out twice"
        if not taken:
            return None
        writing = Writing(session, granted.lease.lease_id, granted.lease.deadline, path, cells)
        if ttl:
            assert writing.deadline == self.node.clock() + ttl
        self.writings.append(writing)
        return writing

    def write(self, writing: Writing) -> None:
        """The worker fills its cells, each time with bytes never seen before."""
        self.version += 1
        writing.versions = [self.version] * len(writing.cells)
        for key, cell in zip(writing.path.keys, writing.cells, strict=True):
            if cell:
                cell.write(payload(key, self.version))

    async def commit(self, writing: Writing, indexes: list[int], digest: str) -> None:
        keys = writing.path.keys
        named = indexes or writing.indexes
        sent = [xxhash.xxh3_128_digest(payload(keys[i], writing.versions[i]).data) for i in named]
        if digest == "wrong" and sent:
            sent[-1] = bytes(16)
        before = {i: keys[i] in self.committed and self.find(keys[i]) is not None for i in named}
        statuses = await self.node.storing.commit(
            writing.session, writing.lease_id, indexes, [] if digest == "none" else sent
        )
        if statuses == [EXPIRED] and not indexes:
            return
        assert len(statuses) == len(named)
        for position, (index, status) in enumerate(zip(named, statuses, strict=True)):
            key, had_slot = keys[index], writing.cells[index] is not None
            assert status in {OK, PRESENT, EXPIRED, MISMATCH}
            is_wrong = digest == "wrong" and position == len(named) - 1
            assert (status == MISMATCH) <= is_wrong
            if status == OK:
                assert had_slot
                assert not is_wrong
                assert self.is_due(writing), "committed from quarantine"
                assert digest != "none" or not before[index], "the second commit won"
                self.committed[key] = writing.versions[index]
            if status == PRESENT and not had_slot and not before[index]:
                assert self.find(key), "present, and not found"
            if status != EXPIRED:
                writing.cells[index] = None
        self.forget_written(writing)

    def is_due(self, writing: Writing) -> bool:
        return self.node.clock() < writing.deadline and writer_of(writing).connected

    def forget_written(self, writing: Writing) -> None:
        if not writing.indexes and writing in self.writings:
            self.writings.remove(writing)

    async def commit_some(self, number: int, digest: str) -> None:
        """All of a reservation that was made earlier."""
        if self.writings:
            writing = self.writings[number % len(self.writings)]
            if writing.versions:
                await self.commit(writing, [], digest)

    async def store(self, worker: int, path: Path, digest: str) -> None:
        writing = await self.reserve(worker, path)
        if writing is not None:
            self.write(writing)
            await self.commit(writing, [], digest)

    async def load(self, worker: int, path: Path, stop_at_gap: bool, ttl: float) -> None:
        session = self.session(worker, path.space)
        held = next((h for h in self.holds if self.is_held(h) and not h.released), None)
        hold_id = held.lease_id if held else 0
        granted = await self.node.loading.load(
            session,
            [path.block_keys],
            stop_at_gap=stop_at_gap,
            ttl_seconds=ttl,
            hold_id=hold_id,
        )
        keys, blocks, gap = path.keys, [], False
        for index, (key, status) in enumerate(zip(keys, granted.statuses, strict=True)):
            found = self.find(key)
            gap = gap or found is None
            expected = found is not None and not (gap and stop_at_gap)
            assert (status in {OK, REFUSED}) == expected, (key, status)
            cell = self.granted_cell(path, granted, index)
            if cell:
                blocks.append((key, self.committed[key], cell))
                assert found == cell
        if blocks:
            deadline = granted.lease.deadline
            assert deadline == self.node.clock() + (ttl or self.node.limits.default_seconds)
            self.readings.append(Reading(session, granted.lease.lease_id, deadline, blocks))

    async def hold(self, worker: int, path: Path, presence: bool, ttl: float) -> None:
        session = self.session(worker, path.space)
        match = Match.PRESENCE if presence else Match.PREFIX
        shards = range(SPECS[path.space].shards)
        found, hold_id = await self.node.loading.lookup(
            session, [path.block_keys], match=match, shards=shards, hold_seconds=ttl
        )
        lanes = [Lane(path.lane.group, shard) for shard in shards]
        blocks = []
        missed = False
        for index, key in enumerate(path.keys):
            each = [Key(key.space, lane, key.sequence, key.position) for lane in lanes]
            cells = [self.find(one) for one in each]
            everywhere = all(cells)
            missed = missed or not everywhere
            assert found[0].presence[index] == (everywhere and (presence or not missed)), key
            assert (index < found[0].matched) == (not missed)
            blocks += [(one, c) for one, c in zip(each, cells, strict=True) if c and everywhere]
        if hold_id:
            lease = self.node.leases.hold(session.namespace.namespace_id, hold_id)
            assert lease is not None
            slots = {slot for part in lease.parts for slot in part.slots}
            held = [(one, self.committed[one], cell) for one, cell in blocks if cell.slot in slots]
            assert len(held) == len(slots), "held, and not found"
            self.holds.append(Reading(session, hold_id, lease.deadline, held))

    async def evict(self, path: Path) -> None:
        await evict(self.namespace(path), path.block_keys, frozenset({Tier.HOST}))
        self.note_evicted()

    async def end_reservation(self, number: int) -> None:
        """The worker gives slots back, written or not."""
        if self.writings:
            writing = self.writings.pop(number % len(self.writings))
            if writer_of(writing).connected:
                self.node.grants.release_by_id(writing.session, writing.lease_id)
            else:
                self.writings.append(writing)

    async def disconnect(self, worker: int) -> None:
        """Its connection ends; it may live on and write to what it reserved."""
        if worker in self.attachments:
            self.node.sessions.disconnect(self.attachments[worker])

    async def die(self, worker: int) -> None:
        attachment = self.attachments.pop(worker, None)
        if attachment is not None:
            self.writings = [w for w in self.writings if writer_of(w) is not attachment]
            self.node.sessions.process_gone(attachment)

    async def resize(self, pages: int) -> None:
        await self.node.resize(pages)

    def note_evicted(self) -> None:
        """What an operator has evicted may be gone although somebody reads it."""
        self.evicted |= {
            (key, version) for key, version in self.committed.items() if self.find(key) is None
        }

    def run(self, *work: Coroutine[Any, Any, None]) -> None:
        self.node.run(*map(_unless_lost, work))

    # Rules.

    @rule(worker=workers, path=paths(), digest=digests)
    def store_one(self, worker: int, path: Path, digest: str) -> None:
        self.run(self.store(worker, path, digest))

    @rule(worker=workers, several=st.lists(paths(), min_size=2, max_size=5))
    def store_several(self, worker: int, several: list[Path]) -> None:
        for path in several:
            self.run(self.store(worker, path, "none"))

    @rule(one=workers, other=workers, path=paths(), digest=digests)
    def two_store_the_same(self, one: int, other: int, path: Path, digest: str) -> None:
        """The first commit wins, whoever reserved first."""
        self.run(self.reserve_and_write(one, path, 0.0))
        self.run(self.store(other, path, digest), self.commit_some(-1, "none"))

    @rule(worker=workers, path=paths(), ttl=seconds)
    def reserve_one(self, worker: int, path: Path, ttl: float) -> None:
        self.run(self.reserve_and_write(worker, path, ttl))

    async def reserve_and_write(self, worker: int, path: Path, ttl: float) -> None:
        writing = await self.reserve(worker, path, ttl)
        if writing:
            self.write(writing)

    @precondition(lambda self: self.writings)
    @rule(number=st.integers(0, 7), picked=st.lists(st.integers(0, 7), max_size=4), digest=digests)
    def commit_one(self, number: int, picked: list[int], digest: str) -> None:
        writing = self.writings[number % len(self.writings)]
        if writing.versions:
            count = len(writing.cells)
            indexes = list(dict.fromkeys(index % count for index in picked))
            self.run(self.commit(writing, indexes, digest))

    @precondition(lambda self: self.writings)
    @rule(number=st.integers(0, 7))
    def give_back_one(self, number: int) -> None:
        self.run(self.end_reservation(number))

    @rule(worker=workers, path=paths(), stop_at_gap=st.booleans(), ttl=seconds)
    def load_one(self, worker: int, path: Path, stop_at_gap: bool, ttl: float) -> None:
        self.run(self.load(worker, path, stop_at_gap, ttl))

    @rule(worker=workers, path=paths(), presence=st.booleans(), ttl=seconds)
    def look_up_one(self, worker: int, path: Path, presence: bool, ttl: float) -> None:
        self.run(self.hold(worker, path, presence, ttl))

    @precondition(lambda self: self.readings)
    @rule(number=st.integers(0, 31))
    def release_one(self, number: int) -> None:
        reading = self.readings[number % len(self.readings)]
        if reading.session.attachment.connected:
            reading.released = True
            self.run(self.release(reading))

    async def release(self, reading: Reading) -> None:
        self.node.grants.release_by_id(reading.session, reading.lease_id)

    @rule(worker=workers, path=paths(), ttl=seconds, renewing=st.booleans())
    def touch_or_renew(self, worker: int, path: Path, ttl: float, renewing: bool) -> None:
        session = self.session(worker, path.space)
        if not renewing:
            self.run(self.node.loading.touch(session, path.block_keys))
            return
        renewed = {each.lease_id for each in self.node.grants.renew(session, [], ttl)}
        deadline = self.node.clock() + (ttl or self.node.limits.default_seconds)
        granted: list[Reading | Writing] = [*self.readings, *self.writings]
        for each in granted:
            if each.session is session and each.lease_id in renewed:
                each.deadline = max(each.deadline, deadline)

    @rule(path=paths(), whole_namespace=st.sampled_from([False, False, False, True]))
    def evict_some(self, path: Path, whole_namespace: bool) -> None:
        keys = None if whole_namespace else path.block_keys
        counting = evict(self.namespace(path), keys, frozenset({Tier.HOST}), dry_run=True)
        [counted] = self.node.run(counting)
        if whole_namespace:
            doomed = {key for key in all_keys() if key.space == path.space and self.find(key)}
            self.node.run(evict(self.namespace(path), None, frozenset({Tier.HOST})))
            self.flushed = True
        else:
            doomed = self.below(path)
            self.run(self.evict(path))
        assert counted.gone + counted.deferred == len(doomed)
        assert not any(self.find(key) for key in doomed)
        self.note_evicted()

    def below(self, path: Path) -> set[Key]:
        """What an eviction of these keys takes: all that is here and hangs on one of them."""
        below = set(path.keys)
        for key in sorted(all_keys(), key=lambda each: each.position):
            if key.parent in below and self.find(key):
                below.add(key)
        return {key for key in below if self.find(key)}

    @rule(passed=st.sampled_from([0.25, 1.0, 5.0, 30.0]))
    def time_passes(self, passed: float) -> None:
        self.node.clock.advance(passed)
        self.node.settle()

    @precondition(lambda self: self.writings or self.readings)
    @rule(worker=workers, process_too=st.booleans())
    def lose_a_worker(self, worker: int, process_too: bool) -> None:
        self.run(self.die(worker) if process_too else self.disconnect(worker))

    @precondition(lambda self: self.writings)
    @rule()
    def stalled_workers_write(self) -> None:
        """Whoever reserved slots and is still there may write to them, late or not."""
        for writing in self.writings:
            for cell in writing.cells:
                if cell:
                    cell.spoil()
            if writing.versions:
                self.write(writing)

    @rule(several=st.lists(calls, min_size=2, max_size=4))
    def side_by_side(self, several: list[Call]) -> None:
        self.run(*(getattr(self, name)(*arguments) for name, *arguments in several))

    @rule(pages=sizes)
    def resize_to(self, pages: int) -> None:
        self.run(self.resize(pages))

    # What always holds.

    @invariant()
    def references_are_leases(self) -> None:
        self.node.audit_at_rest()

    @invariant()
    def leases_live_as_long_as_promised(self) -> None:
        now = self.node.clock()
        for each in self.readings:
            found = self.node.leases.find(each.session.session_id, each.lease_id)
            assert (found is not None) == each.is_due(now), each.lease_id
        for writing in self.writings:
            lease = self.node.leases.find(writing.session.session_id, writing.lease_id)
            kind = LeaseKind.RESERVATION if self.is_due(writing) else LeaseKind.QUARANTINE
            assert lease is not None, "a slot that may be written is nobody's"
            assert lease.kind is kind

    @invariant()
    def only_committed_blocks_are_found_with_their_bytes(self) -> None:
        before, self.present = self.present, {}
        for key in all_keys():
            cell = self.find(key)
            if cell is None:
                continue
            assert key in self.committed, f"{key} was never committed, or evicted"
            assert cell.holds(key, self.committed[key]), key
            self.present[key] = self.committed[key]
        self.ends_went_before_beginnings(before)
        self.committed = dict(self.present)
        self.flushed = False

    def ends_went_before_beginnings(self, before: dict[Key, int]) -> None:
        for key, version in before.items():
            parent = key.parent
            stayed = self.present.get(key) == version
            if stayed and parent in before and not self.flushed:
                assert parent in self.present, f"{parent} went before {key}"

    @invariant()
    def leased_and_held_blocks_stay(self) -> None:
        now = self.node.clock()
        live = [each for each in self.readings if each.is_due(now)]
        for each in [*live, *filter(self.is_held, self.holds)]:
            for key, version, cell in each.blocks:
                assert cell.is_current
                assert cell.holds(key, version)
                if (key, version) not in self.evicted:
                    assert self.find(key), f"{key} was evicted under a lease"
                    assert self.committed[key] == version
        self.holds = [each for each in self.holds if self.is_held(each)]

    def is_held(self, hold: Reading) -> bool:
        lease = self.node.leases.hold(hold.session.namespace.namespace_id, hold.lease_id)
        if lease is not None:
            slots = {(part.lane, slot) for part in lease.parts for slot in part.slots}
            hold.blocks = [b for b in hold.blocks if (b[0].lane, b[2].slot) in slots]
        return lease is not None

    @invariant()
    def a_late_reader_that_finds_its_generation_has_its_bytes(self) -> None:
        for each in self.readings:
            for key, version, cell in each.blocks:
                assert not cell.is_current or cell.holds(key, version), key
        current = [r for r in self.readings if any(cell.is_current for *_, cell in r.blocks)]
        self.readings = current[-32:] + [r for r in current[:-32] if r.is_due(self.node.clock())]

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
        try:
            self.run(*(self.die(worker) for worker in range(WORKERS)))
            self.node.clock.advance(self.node.limits.max_seconds)
            self.node.settle()
            assert len(self.node.leases) == 0, list(self.node.leases)
            arena = self.node.host.arena
            assert arena.allocated_bytes <= arena.capacity_bytes, "it never got smaller"
            self.node.audit_at_rest()
        finally:
            self.node.close()


async def _unless_lost(call: Coroutine[Any, Any, None]) -> None:
    """The agent may end the call of a worker that is lost meanwhile."""
    with suppress(SessionLostError):
        await call


TestHostMachine = HostMachine.TestCase
TestHostMachine.settings = settings(
    max_examples=int(os.environ.get("KVTIER_EXAMPLES", "100")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
