"""Breakpoints of stores: policies that want to know of them do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kvtier.client.client import Client
from kvtier.core.block import BlockKeys
from kvtier.core.namespace import NamespaceSpec
from kvtier.core.policies.base import Blocks, Context, Marking
from kvtier.core.policies.lru import Lru
from kvtier.errors import InvalidRequestError
from kvtier.tiers.host import HostTier
from tests.model.node import Node
from tests.unit.agent.worker import PAGE, Worker, sequence

KEYS = sequence("shared", 8)


class MarkingLru(Lru):
    """LRU that keeps what it is told, as a user's own policy might."""

    def __init__(self, blocks: Blocks, context: Context) -> None:
        super().__init__(blocks, context)
        self._blocks = blocks
        self.marked: list[bytes] = []

    def mark(self, row: int) -> None:
        self.marked.append(self._blocks.residency.describe(row)[1])


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(1 << 20, policy=f"{__name__}:{MarkingLru.__name__}")
    yield node
    node.close()


def marked(worker: Worker) -> list[bytes]:
    policy = worker.size_class.policy
    assert isinstance(policy, MarkingLru)
    told, policy.marked = policy.marked, []
    return told


def store(node: Node, worker: Worker, *entries: BlockKeys, breakpoints: list[int]) -> None:
    async def reserve_and_commit() -> None:
        granted = await node.storing.reserve(worker.session, entries, breakpoints=breakpoints)
        await worker.commit(granted)

    node.run(reserve_and_commit())


def test_a_policy_hears_of_a_breakpoint_when_its_block_is_there(node: Node) -> None:
    worker = Worker(node)
    [granted] = node.run(node.storing.reserve(worker.session, [KEYS], breakpoints=[3, 5, 3]))
    assert marked(worker) == []
    node.run(worker.commit(granted))
    assert marked(worker) == [KEYS.hashes[3], KEYS.hashes[5]]


def test_it_hears_of_one_that_is_there_already_at_once(node: Node) -> None:
    worker = Worker(node)
    node.run(worker.store(sequence("shared", 4)))
    [granted] = node.run(node.storing.reserve(worker.session, [KEYS], breakpoints=[3, 7]))
    assert marked(worker) == [KEYS.hashes[3]]
    node.run(worker.commit(granted))
    assert marked(worker) == [KEYS.hashes[7]]


def test_indexes_count_over_all_entries(node: Node) -> None:
    worker, others = Worker(node), sequence("other", 70)
    store(node, worker, KEYS, others, sequence("third", 2), breakpoints=[7, 8, 77, 78, 79])
    third = sequence("third", 2).hashes
    expected = [KEYS.hashes[7], others.hashes[0], others.hashes[69], *third]
    assert marked(worker) == expected


def test_what_is_not_committed_is_not_marked(node: Node) -> None:
    worker = Worker(node)
    [granted] = node.run(node.storing.reserve(worker.session, [KEYS], breakpoints=[0, 1]))
    lease_id = granted.lease.lease_id
    node.run(node.storing.commit(worker.session, lease_id, [0]))
    node.grants.release_by_id(worker.session, lease_id)
    assert marked(worker) == [KEYS.hashes[0]]


def test_policies_without_marks_do_without() -> None:
    host = HostTier(1 << 20)
    assert not isinstance(host.size_class(1, PAGE).policy, Marking)
    host.size_class(1, PAGE).mark(0)
    host.close()


@pytest.mark.parametrize("index", [-1, 2])
def test_a_client_refuses_what_is_no_index(index: int) -> None:
    with Client("unix:/nonexistent/worker.sock") as client:
        namespace = client.namespace(NamespaceSpec(name="m", block_bytes=(PAGE,)))
        hashes = [bytes(32), bytes([1] * 32)]
        with pytest.raises(InvalidRequestError, match=f"breakpoints: {index} is no index"):
            namespace.reserve(hashes, breakpoints=[index])
        with pytest.raises(InvalidRequestError, match=f"breakpoints: {index} is no index"):
            namespace.store(hashes, np.zeros((2, PAGE), np.uint8), breakpoints=[index])
