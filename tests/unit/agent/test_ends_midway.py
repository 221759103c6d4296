"""What happens to a call when its lease or its worker ends while it runs.

Between two slices of a batch other work has its turn: a release, an expiry, a death.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kvtier.agent.sessions.grants import LeaseLimits
from kvtier.core.block import BlockStatus
from kvtier.errors import SessionLostError
from tests.model.node import Node
from tests.unit.agent.worker import PAGE, Worker, sequence

BLOCKS = 700


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(2 * BLOCKS * PAGE, LeaseLimits(max_share=1.0))
    yield node
    node.close()


@pytest.fixture
def worker(node: Node) -> Worker:
    return Worker(node)


def run_until_busy(node: Node, task: asyncio.Task[object], worker: Worker) -> None:
    """Turns of the loop until the call has taken its first slots, but not its last."""
    for _ in range(200):
        if worker.size_class.referenced_slots or task.done():
            break
        node.loop.turn()
    assert not task.done(), "the batch is too small for this test"


def finish(node: Node, task: asyncio.Task[object]) -> None:
    for _ in range(500):
        if task.done():
            break
        node.loop.turn()
    assert task.done()
    if not isinstance(task.exception(), SessionLostError):
        task.result()


def assert_nothing_is_kept(node: Node, worker: Worker) -> None:
    node.settle()
    node.audit_at_rest()
    assert worker.size_class.referenced_slots == 0


def test_a_reservation_released_while_its_digests_are_checked_is_not_committed(
    node: Node, worker: Worker
) -> None:
    keys = sequence("a", 4)
    [granted] = node.run(worker.reserve(keys))
    node.mover.turns_before = 5
    commit = node.storing.commit(
        worker.session, granted.lease.lease_id, digests=worker.digests(granted)
    )

    async def release() -> None:
        node.grants.release_by_id(worker.session, granted.lease.lease_id)

    [statuses, _] = node.run(commit, release())
    assert set(statuses) == {BlockStatus.EXPIRED}
    assert worker.stored == 0
    assert_nothing_is_kept(node, worker)


def test_a_load_whose_lease_ends_midway_keeps_no_block(node: Node, worker: Worker) -> None:
    keys = sequence("a", BLOCKS)
    node.run(worker.store(keys))
    task = node.loop.create_task(worker.load(keys, ttl=0.001))
    run_until_busy(node, task, worker)
    node.clock.advance(1)
    finish(node, task)
    node.clock.advance(100)
    assert_nothing_is_kept(node, worker)


def test_a_load_whose_worker_dies_midway_keeps_no_block(node: Node, worker: Worker) -> None:
    keys = sequence("a", BLOCKS)
    node.run(worker.store(keys))
    task = node.loop.create_task(worker.load(keys))
    run_until_busy(node, task, worker)
    node.sessions.process_gone(worker.attachment)
    finish(node, task)
    node.clock.advance(100)
    assert_nothing_is_kept(node, worker)


def test_a_lookup_whose_hold_yields_midway_holds_nothing(node: Node, worker: Worker) -> None:
    keys = sequence("a", BLOCKS)
    node.run(worker.store(keys))
    lookup = node.loading.lookup(worker.session, [keys], hold_seconds=5)
    task = node.loop.create_task(lookup)
    run_until_busy(node, task, worker)
    assert node.grants.drop_oldest_hold(worker.session.namespace)
    finish(node, task)
    node.clock.advance(100)
    assert_nothing_is_kept(node, worker)


def test_a_reservation_whose_worker_dies_midway_keeps_no_slot(node: Node, worker: Worker) -> None:
    node.run(worker.store(sequence("a", BLOCKS)))
    task = node.loop.create_task(worker.reserve(sequence("b", BLOCKS)))
    run_until_busy(node, task, worker)
    node.sessions.process_gone(worker.attachment)
    finish(node, task)
    node.clock.advance(100)
    assert_nothing_is_kept(node, worker)


def test_a_worker_that_ends_while_it_waits_for_room_gets_no_slots(
    node: Node, worker: Worker
) -> None:
    """Nobody would ever give them back."""
    node.mover.turns_before = 20
    task = node.loop.create_task(worker.reserve(sequence("a", 8)))
    for _ in range(5):
        node.loop.turn()
    assert not task.done()
    node.sessions.disconnect(worker.attachment)
    finish(node, task)
    node.sessions.process_gone(worker.attachment)
    node.clock.advance(100)
    assert_nothing_is_kept(node, worker)


def test_a_cancelled_call_gives_back_what_it_took(node: Node, worker: Worker) -> None:
    keys = sequence("a", BLOCKS)
    node.run(worker.store(keys))
    lookup = node.loading.lookup(worker.session, [keys], hold_seconds=5)
    for call in (worker.load(keys), lookup, worker.reserve(sequence("b", BLOCKS))):
        task = node.loop.create_task(call)
        run_until_busy(node, task, worker)
        task.cancel()
        node.settle()
        assert task.cancelled()
        assert len(node.leases) == 0
        assert_nothing_is_kept(node, worker)
