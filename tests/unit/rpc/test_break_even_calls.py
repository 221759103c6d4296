"""What BREAK_EVEN wants of a call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.serving.admission import Admission, AdmissionLimits
from kvtier.core.block import BlockStatus, Tier
from kvtier.errors import InvalidRequestError
from kvtier.rpc.block_cache import BlockCacheService, Identity
from kvtier.rpc.server import Call
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2
from tests.model.node import Node
from tests.unit.agent.stream_worker import streams_of
from tests.unit.agent.worker import Worker, sequence

KEYS = block_pb2.BlockKeys(hash_bytes=32, hashes=b"h" * 64)


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(1 << 20)
    yield node
    node.close()


def _load(
    node: Node,
    worker: Worker,
    *keys: block_pb2.BlockKeys,
    speed: float = 0.0,
    lease_count: int = 0,
) -> list[int]:
    lifecycle = Lifecycle()
    service = BlockCacheService(
        Identity(1, "test", 64, "attach.sock"),
        node.sessions,
        node.grants,
        node.loading,
        node.storing,
        streams_of(node, lifecycle),
        lifecycle,
        [Tier.HOST],
        Admission(AdmissionLimits()),
    )
    request = pb.LoadBlocksRequest(
        keys=keys or [KEYS],
        wait="BREAK_EVEN",
        compute_seconds_per_block=speed,
        lease_count=lease_count,
    )
    [answer] = node.run(service.LoadBlocks(request, Call(worker.session.token, None)))
    return list(answer.status)


def test_the_speed_is_named_if_nobody_has_said_it(node: Node) -> None:
    worker = Worker(node, "model")
    with pytest.raises(InvalidRequestError, match="compute_seconds_per_block is unset"):
        _load(node, worker)


def test_what_the_session_said_last_holds(node: Node) -> None:
    worker = Worker(node, "model")
    assert _load(node, worker, speed=0.5) == [BlockStatus.ABSENT] * 2
    assert _load(node, worker) == [BlockStatus.ABSENT] * 2
    assert worker.session.compute_seconds_per_block == 0.5


def test_no_more_is_leased_than_was_asked_for(node: Node) -> None:
    worker = Worker(node, "model")
    stored = sequence("prompt", 4)
    node.run(worker.store(stored))
    keys = block_pb2.BlockKeys(hash_bytes=32, hashes=b"".join(stored.hashes))
    statuses = _load(node, worker, keys, speed=0.5, lease_count=3)
    assert statuses == [BlockStatus.OK] * 3 + [BlockStatus.PENDING]
    assert worker.size_class.referenced_slots == 3


def test_entries_are_of_one_prefix(node: Node) -> None:
    worker = Worker(node, "model")
    far = block_pb2.BlockKeys(hash_bytes=32, hashes=b"f" * 32, parent_hash=b"p" * 32, position=9)
    with pytest.raises(InvalidRequestError, match="keys: 10 positions"):
        _load(node, worker, KEYS, far, speed=0.5)
    near = block_pb2.BlockKeys(hash_bytes=32, hashes=b"n" * 32, parent_hash=b"p" * 32, position=1)
    assert _load(node, worker, KEYS, near, speed=0.5) == [BlockStatus.ABSENT] * 3
