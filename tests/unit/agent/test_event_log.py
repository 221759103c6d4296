"""The log of changes against a plain list, and snapshots against what is there."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from kvtier.agent.serving.event_log import Batch, Change, EventLog, Run, Snapshot
from kvtier.core.block import BlockStatus, Lane, Tier
from kvtier.core.residency import NONE
from kvtier.errors import EventsLostError
from kvtier.tiers.host import HostTier

PAGE = 4096
KEPT = 24
LANES = (Lane(0, 0), Lane(0, 1), Lane(1, 0))

#: What happened to which block where.
Fact = tuple[Change, Tier, Lane, bytes]
Block = tuple[Tier, Lane, bytes]


def name(number: int, size: int = 16) -> bytes:
    return number.to_bytes(size, "big")


def facts_of(runs: Iterable[Run]) -> list[Fact]:
    return [(each.change, each.tier, each.lane, h) for each in runs for h in each.hashes]


def replay(held: set[Block], facts: Iterable[Fact]) -> None:
    """Fails for what comes twice or goes without having come."""
    for change, tier, lane, block_hash in facts:
        key = (tier, lane, block_hash)
        if change is Change.STORED:
            assert key not in held
            held.add(key)
        else:
            held.remove(key)


class TwoTiers:
    """A namespace of two groups in two tiers; in the second one they share a size class."""

    def __init__(self, pages: int = 64) -> None:
        self.spaces = {Tier.HOST: HostTier(pages * PAGE), Tier.DISK: HostTier(pages * PAGE)}
        host, disk = self.spaces.values()
        self.tiers = {
            Tier.HOST: (host.size_class(1, PAGE), host.size_class(1, 2 * PAGE)),
            Tier.DISK: (disk.size_class(1, PAGE), disk.size_class(1, PAGE)),
        }
        for tier, groups in self.tiers.items():
            for each in dict.fromkeys(groups):
                while self.spaces[tier].can_grow(each) and each.free_slots < 20:
                    extent = self.spaces[tier].grow(each)
                    extent.populate(extent.slots)
                    each.publish(extent, extent.slots)
        self.log = EventLog(self.tiers, KEPT)
        self.log.attach()

    def store(self, tier: Tier, lane: Lane, block_hash: bytes, parent: bytes, at: int) -> bool:
        """Whether there was room."""
        size_class = self.tiers[tier][lane.group]
        if not size_class.free_slots:
            return False
        [slot] = size_class.take(1)
        status = size_class.commit(lane, block_hash, parent, at, slot)
        size_class.release([slot])
        return status is BlockStatus.OK

    def forget(self, tier: Tier, lane: Lane, block_hash: bytes) -> bool:
        size_class = self.tiers[tier][lane.group]
        row = size_class.residency.find(lane, block_hash)
        if row != NONE:
            size_class.forget(row)
        return row != NONE

    def held(self) -> set[Block]:
        return {
            (tier, *each.residency.describe(row))
            for tier, groups in self.tiers.items()
            for each in dict.fromkeys(groups)
            for row in range(each.residency.row_count)
            if each.residency.slot[row] != NONE
        }

    def close(self) -> None:
        for each in self.spaces.values():
            each.close()


class LogMachine(RuleBasedStateMachine):
    """Readers at several places, and snapshots in parts, while blocks come and go."""

    readers = Bundle("readers")
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.node = TwoTiers()
        self.facts: list[Fact] = []

    blocks = st.tuples(
        st.sampled_from([Tier.HOST, Tier.DISK]), st.sampled_from(LANES), st.integers(1, 12)
    )

    @rule(block=blocks, size=st.sampled_from([16, 32]), count=st.integers(1, 5))
    def store(self, block: tuple[Tier, Lane, int], size: int, count: int) -> None:
        tier, lane, first = block
        for at in range(count):
            block_hash = name(first + at, size)
            parent = name(first + at - 1, size) if at else b""
            if self.node.store(tier, lane, block_hash, parent, at):
                self.facts.append((Change.STORED, tier, lane, block_hash))

    @rule(block=blocks, size=st.sampled_from([16, 32]), count=st.integers(1, 5))
    def forget(self, block: tuple[Tier, Lane, int], size: int, count: int) -> None:
        tier, lane, first = block
        for number in range(first, first + count):
            if self.node.forget(tier, lane, name(number, size)):
                self.facts.append((Change.REMOVED, tier, lane, name(number, size)))

    @rule(target=readers)
    def begin(self) -> dict[str, int]:
        return {"next": self.node.log.revision + 1}

    @rule(reader=readers, most=st.integers(1, 9))
    def read(self, reader: dict[str, int], most: int) -> None:
        start, last = reader["next"], len(self.facts)
        if start < last - KEPT + 1:
            with pytest.raises(EventsLostError, match=f"revision {start} on"):
                self.node.log.batch(start, most)
            reader["next"] = last + 1
            return
        batch = self.node.log.batch(start, most)
        assert facts_of(batch.runs) == self.facts[start - 1 : start - 1 + most]
        assert batch.revision == min(last, start - 1 + most)
        check_runs(batch.runs)
        reader["next"] = batch.revision + 1

    @rule(target=snapshots)
    def snapshot(self) -> tuple[Snapshot, set[Block]]:
        return Snapshot(self.node.log), set()

    @rule(snapshot=consumes(snapshots), most=st.integers(1, 7), target=snapshots)
    def take_part(
        self, snapshot: tuple[Snapshot, set[Block]], most: int
    ) -> tuple[Snapshot, set[Block]]:
        taken, held = snapshot
        try:
            batch = taken.part(most)
        except EventsLostError:
            return Snapshot(self.node.log), set()
        replay(held, facts_of(batch.runs))
        if batch.is_snapshot_end:
            assert held == self.node.held()
            assert batch.revision == len(self.facts)
            return Snapshot(self.node.log), set()
        assert batch.revision == 0
        return taken, held

    @precondition(lambda self: len(self.facts) > KEPT)
    @rule()
    def what_was_never_made_cannot_be_read(self) -> None:
        for wrong in (0, len(self.facts) + 2):
            with pytest.raises(EventsLostError):
                self.node.log.batch(wrong, 1)

    @invariant()
    def every_change_has_one_revision(self) -> None:
        assert self.node.log.revision == len(self.facts)

    def teardown(self) -> None:
        self.node.close()


def check_runs(runs: Iterable[Run]) -> None:
    """Hashes of one length; what was stored is a sequence."""
    for each in runs:
        assert len({len(h) for h in each.hashes}) == 1
        if each.change is Change.STORED:
            numbers = [int.from_bytes(h, "big") for h in each.hashes]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def node() -> Iterable[TwoTiers]:
    node = TwoTiers()
    yield node
    node.close()


def chain(node: TwoTiers, count: int, tier: Tier = Tier.HOST, first: int = 1) -> None:
    for at in range(count):
        node.store(tier, LANES[0], name(first + at), name(first + at - 1) if at else b"", at)


def test_a_sequence_is_one_run(node: TwoTiers) -> None:
    chain(node, 6)
    [run] = node.log.batch(1, 100).runs
    assert (run.change, run.tier, run.lane) == (Change.STORED, Tier.HOST, LANES[0])
    assert (run.parent, run.position, len(run.hashes)) == (b"", 0, 6)
    [rest] = node.log.batch(4, 100).runs
    assert (rest.parent, rest.position, rest.hashes) == (name(3), 3, [name(4), name(5), name(6)])


def test_another_tier_or_lane_or_gap_begins_another_run(node: TwoTiers) -> None:
    chain(node, 2)
    chain(node, 2, Tier.DISK)
    node.store(Tier.DISK, LANES[1], name(3), name(2), 2)
    node.store(Tier.DISK, LANES[0], name(9), name(8), 8)
    node.forget(Tier.HOST, LANES[0], name(2))
    node.forget(Tier.HOST, LANES[0], name(1))
    runs = node.log.batch(1, 100).runs
    assert [len(each.hashes) for each in runs] == [2, 2, 1, 1, 2]
    assert runs[-1].change is Change.REMOVED


def test_those_who_are_as_far_as_each_other_get_the_same_batch(node: TwoTiers) -> None:
    chain(node, 3)
    batch = node.log.batch(1, 100)
    assert node.log.batch(1, 100) is batch
    assert node.log.batch(2, 100) is not batch
    chain(node, 1, first=50)
    assert node.log.batch(1, 100).revision == 4


def test_what_is_detached_hears_nothing(node: TwoTiers) -> None:
    chain(node, 3)
    node.log.detach()
    chain(node, 3, first=10)
    assert node.log.revision == 3


def test_a_snapshot_is_no_worse_for_changes_of_many_turns(node: TwoTiers) -> None:
    """More change between two parts than one part takes."""
    chain(node, 10)
    snapshot, held = Snapshot(node.log), set[Block]()
    replay(held, facts_of(snapshot.part(4).runs))
    for number in range(1, 9):
        node.forget(Tier.HOST, LANES[0], name(number))
    chain(node, 3, first=30)
    batch = Batch()
    while not batch.is_snapshot_end:
        batch = snapshot.part(4)
        replay(held, facts_of(batch.runs))
    assert held == node.held()


def test_who_is_overtaken_within_a_snapshot_is_told(node: TwoTiers) -> None:
    snapshot = Snapshot(node.log)
    for _ in range(KEPT):
        chain(node, 1)
        node.forget(Tier.HOST, LANES[0], name(1))
    with pytest.raises(EventsLostError):
        snapshot.part(4)


def test_its_memory_is_known(node: TwoTiers) -> None:
    empty = node.log.size_bytes
    assert empty >= KEPT * 30
    chain(node, 10)
    assert empty < node.log.size_bytes <= KEPT * 130
    for _ in range(KEPT):
        chain(node, 1, first=99)
        node.forget(Tier.HOST, LANES[0], name(99))
    assert node.log.size_bytes <= KEPT * 130


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_what_changes_where_a_snapshot_has_come_to_is_told_once(
    node: TwoTiers, number: int
) -> None:
    """The first four rows are read."""
    chain(node, 10)
    snapshot, held = Snapshot(node.log), set[Block]()
    replay(held, facts_of(snapshot.part(4).runs))
    assert len(held) == 4
    node.forget(Tier.HOST, LANES[0], name(number))
    node.store(Tier.HOST, LANES[0], name(number), name(number - 1), number - 1)
    replay(held, facts_of(snapshot.part(100).runs))
    assert held == node.held()


def test_exactly_what_is_kept_can_be_read(node: TwoTiers) -> None:
    for _ in range(KEPT):
        chain(node, 1)
        node.forget(Tier.HOST, LANES[0], name(1))
    assert node.log.revision == 2 * KEPT
    assert len(facts_of(node.log.batch(KEPT + 1, KEPT).runs)) == KEPT
    with pytest.raises(EventsLostError):
        node.log.batch(KEPT, 1)
    assert node.log.batch(2 * KEPT + 1, 1).runs == []
