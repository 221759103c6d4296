"""How fast workers compute, as their calls say it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.serving.admission import Admission, AdmissionLimits
from kvtier.core.block import Tier
from kvtier.rpc.block_cache import BlockCacheService, Identity
from kvtier.rpc.server import Call
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2
from tests.model.node import Node
from tests.unit.agent.stream_worker import streams_of
from tests.unit.agent.worker import Worker

KEYS = block_pb2.BlockKeys(hash_bytes=32, hashes=b"h" * 32)


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(1 << 20)
    yield node
    node.close()


def _service(node: Node) -> BlockCacheService:
    identity = Identity(1, "test", 64, "attach.sock")
    lifecycle = Lifecycle()
    return BlockCacheService(
        identity,
        node.sessions,
        node.grants,
        node.loading,
        node.storing,
        streams_of(node, lifecycle),
        lifecycle,
        [Tier.HOST],
        Admission(AdmissionLimits()),
    )


def test_a_namespace_computes_as_its_sessions_say(node: Node) -> None:
    service = _service(node)
    workers = [Worker(node, "model") for _ in range(4)]
    other = Worker(node, "other")
    namespace = workers[0].session.namespace

    def lookup(worker: Worker, seconds: float) -> None:
        request = pb.LookupPrefixRequest(
            keys=[KEYS], match="PREFIX", compute_seconds_per_block=seconds
        )
        node.run(service.LookupPrefix(request, Call(worker.session.token, None)))

    def load(worker: Worker, seconds: float) -> None:
        request = pb.LoadBlocksRequest(
            keys=[KEYS], wait="BEST_EFFORT", compute_seconds_per_block=seconds
        )
        node.run(service.LoadBlocks(request, Call(worker.session.token, None)))

    lookup(workers[0], 0.0)
    assert node.sessions.compute_seconds_per_block(namespace) == 0.0
    lookup(workers[0], 0.25)
    lookup(workers[0], 0.0)  # says nothing new
    assert node.sessions.compute_seconds_per_block(namespace) == 0.25
    load(workers[1], 0.75)
    lookup(workers[2], 0.5)
    lookup(other, 9.0)
    assert node.sessions.compute_seconds_per_block(namespace) == 0.5
    for worker in workers[:3]:
        node.sessions.disconnect(worker.attachment)
    assert node.sessions.compute_seconds_per_block(namespace) == 0.0
