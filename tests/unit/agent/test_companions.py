"""Behaviour of `kvtier.tiers.companions`: groups and shards of a block go together."""

from __future__ import annotations

import pytest

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.namespace import NamespaceSpec
from kvtier.core.residency import NONE
from tests.model.node import Node
from tests.unit.agent.worker import sequence

PAGE = 4096
LANES = [Lane(group, shard) for group in range(2) for shard in range(2)]


def open_session(node: Node, extra: dict[str, str]) -> object:
    spec = NamespaceSpec(name="model", block_bytes=(PAGE, 2 * PAGE), shards=2, extra=extra)
    attachment = node.attach(b"default/model".ljust(16))
    session, _ = node.sessions.open(attachment.token, spec, "")
    return session


def store(node: Node, session: object, name: str, count: int) -> None:
    hashes = sequence(name, count).hashes
    entries = [BlockKeys(lane, hashes) for lane in LANES]

    async def run() -> None:
        granted = await node.storing.reserve(session, entries)  # type: ignore[arg-type]
        if granted.lease.size_bytes:
            await node.storing.commit(session, granted.lease.lease_id)  # type: ignore[arg-type]

    node.run(run())


def here(session: object, name: str, count: int, lane: Lane) -> set[bytes]:
    groups = session.namespace.groups  # type: ignore[attr-defined]
    hashes = sequence(name, count).hashes
    rows = groups[lane.group].residency.find_many(lane, hashes)
    return {each for each, row in zip(hashes, rows, strict=True) if row != NONE}


@pytest.mark.parametrize("policy", ["lru", "hd", "s3fifo"])
def test_lanes_have_the_same_blocks_after_evictions(policy: str) -> None:
    node = Node(1 << 20, policy=policy)
    session = open_session(node, {})
    groups = session.namespace.groups  # type: ignore[attr-defined]
    for number in range(12):
        store(node, session, f"s{number}", 16)
        while len(groups[0].residency) > 60 and groups[0].evict_one():
            pass
        for earlier in range(number + 1):
            lanes = [here(session, f"s{earlier}", 16, lane) for lane in LANES]
            assert all(lane == lanes[0] for lane in lanes), earlier
    assert groups[0].counters.evicted
    assert groups[1].counters.evicted
    node.close()


def test_a_window_goes_alone_and_a_block_in_use_stays() -> None:
    node = Node(1 << 20)
    session = open_session(node, {"group.1": "window of 64"})
    groups = session.namespace.groups  # type: ignore[attr-defined]
    store(node, session, "a", 4)
    assert groups[1].evict_one()
    assert [len(here(session, "a", 4, lane)) for lane in LANES] == [4, 4, 3, 3]
    last = sequence("a", 4).hashes[3]
    other = groups[0].residency.find(Lane(0, 1), last)
    held = groups[0].acquire([other])
    assert groups[0].evict_one()
    assert sorted(len(here(session, "a", 4, lane)) for lane in LANES) == [3, 3, 3, 4]
    groups[0].release(held)
    node.close()
