"""Whatever is wrong with a request has its status code, and a message that says what to mend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from kvtier import NamespaceSpec
from kvtier.testing import AgentProcess
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2
from kvtier.v1 import cache_admin_pb2 as admin_pb
from tests.faults.agents import running_agent
from tests.faults.blocks import hashes_of, spec_of
from tests.faults.raw_worker import RawWorker, keys_message, spec_message

pytestmark = pytest.mark.faults

_MAX_BLOCKS = 64
_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_METHODS = [
    "LookupPrefix",
    "LoadBlocks",
    "ReserveBlocks",
    "CommitBlocks",
    "RenewLeases",
    "ReleaseLeases",
    "PrefetchPrefix",
    "TouchBlocks",
]
_GOOD = keys_message(hashes_of("good", 2))


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    with running_agent("16MiB", limits__max_batch_blocks=_MAX_BLOCKS) as running:
        yield running


@pytest.fixture
def worker(agent: AgentProcess) -> Iterator[RawWorker]:
    with RawWorker(agent.directory) as raw:
        yield raw


@pytest.fixture
def session(worker: RawWorker) -> bytes:
    return worker.open(spec_of())


def _refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def _keys(**fields: object) -> block_pb2.BlockKeys:
    message = block_pb2.BlockKeys()
    message.CopyFrom(_GOOD)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


#: What is wrong with keys, and the words of the answer.
_BAD_KEYS = [
    pytest.param(_keys(hash_bytes=15), ["keys.hash_bytes is 15", "16 to 64"], id="short hash"),
    pytest.param(_keys(hash_bytes=65), ["keys.hash_bytes is 65", "16 to 64"], id="long hash"),
    pytest.param(_keys(hash_bytes=0), ["keys.hash_bytes is 0", "16 to 64"], id="no length"),
    pytest.param(_keys(hashes=b""), ["keys.hashes has 0 bytes"], id="no hashes"),
    pytest.param(_keys(hashes=b"x" * 33), ["keys.hashes has 33 bytes", "32"], id="odd length"),
    pytest.param(
        keys_message(hashes_of("many", _MAX_BLOCKS + 1)),
        ["keys.hashes has 65 hashes", "at most 64", "max_batch_blocks"],
        id="too many",
    ),
    pytest.param(_keys(group=1), ["keys.group is 1", "1 groups"], id="group"),
    pytest.param(_keys(shard=1), ["keys.shard is 1", "1 shards"], id="shard"),
    pytest.param(_keys(parent_hash=b"p" * 32), ["keys.parent_hash", "keys.position"], id="parent"),
    pytest.param(
        _keys(parent_hash=b"p" * 16, position=1), ["keys.parent_hash has 16 bytes", "32"], id="size"
    ),
    pytest.param(_keys(position=(1 << 32) - 1), ["keys.position", "too long"], id="position"),
]


def _with_keys(method: str, keys: block_pb2.BlockKeys) -> Message:
    if method == "LookupPrefix":
        return pb.LookupPrefixRequest(keys=[keys])
    if method == "LoadBlocks":
        return pb.LoadBlocksRequest(keys=[keys], wait=pb.LoadBlocksRequest.ALL)
    if method == "ReserveBlocks":
        return pb.ReserveBlocksRequest(keys=[keys])
    if method == "PrefetchPrefix":
        return pb.PrefetchPrefixRequest(keys=keys)
    return pb.TouchBlocksRequest(keys=keys)


@pytest.mark.parametrize(
    "method", ["LookupPrefix", "LoadBlocks", "ReserveBlocks", "PrefetchPrefix", "TouchBlocks"]
)
@pytest.mark.parametrize(("keys", "words"), _BAD_KEYS)
def test_bad_keys_are_named(
    worker: RawWorker, session: bytes, method: str, keys: block_pb2.BlockKeys, words: list[str]
) -> None:
    code, details = _refusal(lambda: worker.call(method, _with_keys(method, keys), session))
    assert code is _INVALID
    for word in words:
        assert word in details


_SECOND = Duration(seconds=1)
_NEGATIVE = Duration(seconds=-1)
_BAD_FIELDS = [
    ("LookupPrefix", pb.LookupPrefixRequest(), ["keys is empty"]),
    (
        "LookupPrefix",
        pb.LookupPrefixRequest(keys=[keys_message(hashes_of(str(i), 40)) for i in range(2)]),
        ["keys has 80 hashes in all", "at most 64"],
    ),
    ("LookupPrefix", pb.LookupPrefixRequest(keys=[_GOOD, _keys(group=7)]), ["keys[1].group is 7"]),
    (
        "LookupPrefix",
        pb.LookupPrefixRequest(keys=[_GOOD], match=9),  # type: ignore[arg-type]
        ["match is 9", "PREFIX or PRESENCE"],
    ),
    ("LookupPrefix", pb.LookupPrefixRequest(keys=[_GOOD], tiers=[9]), ["tiers"]),  # type: ignore[list-item]
    ("LookupPrefix", pb.LookupPrefixRequest(keys=[_GOOD], shards=[3]), ["shards is 3"]),
    ("LookupPrefix", pb.LookupPrefixRequest(keys=[_GOOD], hold=_NEGATIVE), ["hold is -1"]),
    (
        "LookupPrefix",
        pb.LookupPrefixRequest(keys=[_GOOD], compute_seconds_per_block=float("nan")),
        ["compute_seconds_per_block is nan", "not negative"],
    ),
    (
        "LoadBlocks",
        pb.LoadBlocksRequest(keys=[_GOOD], wait=2, compute_seconds_per_block=-1),  # type: ignore[arg-type]
        ["compute_seconds_per_block is -1", "not negative"],
    ),
    ("LoadBlocks", pb.LoadBlocksRequest(keys=[_GOOD]), ["wait is unset", "BEST_EFFORT"]),
    (
        "LoadBlocks",
        pb.LoadBlocksRequest(keys=[_GOOD], wait=9),  # type: ignore[arg-type]
        ["wait", "BEST_EFFORT"],
    ),
    (
        "LoadBlocks",
        pb.LoadBlocksRequest(keys=[_GOOD], wait=pb.LoadBlocksRequest.ALL, ttl=_NEGATIVE),
        ["ttl is -1"],
    ),
    ("ReserveBlocks", pb.ReserveBlocksRequest(), ["keys is empty"]),
    ("ReserveBlocks", pb.ReserveBlocksRequest(keys=[_GOOD], ttl=_NEGATIVE), ["ttl is -1"]),
    ("ReserveBlocks", pb.ReserveBlocksRequest(keys=[_GOOD], breakpoints=[2]), ["breakpoints"]),
    ("ReserveBlocks", pb.ReserveBlocksRequest(keys=[_keys(position=3)]), ["keys.parent_hash"]),
    ("CommitBlocks", pb.CommitBlocksRequest(digests=b"x" * 17), ["digests has 17 bytes", "16"]),
    ("RenewLeases", pb.RenewLeasesRequest(ttl=_NEGATIVE), ["ttl is -1"]),
    (
        "PrefetchPrefix",
        pb.PrefetchPrefixRequest(keys=_GOOD, target=block_pb2.TIER_DISK),
        ["target must be TIER_HOST"],
    ),
]


@pytest.mark.parametrize(("method", "request_", "words"), _BAD_FIELDS)
def test_bad_fields_are_named(
    worker: RawWorker, session: bytes, method: str, request_: Message, words: list[str]
) -> None:
    code, details = _refusal(lambda: worker.call(method, request_, session))
    assert code is _INVALID
    for word in words:
        assert word in details


@pytest.mark.parametrize("method", [*_METHODS, "OpenSession"])
def test_garbage_is_refused(worker: RawWorker, session: bytes, method: str) -> None:
    code, details = _refusal(lambda: worker.call(method, b"\xff\xff garbage \x00", session))
    assert code is _INVALID
    assert method in details


@pytest.mark.parametrize("method", _METHODS)
def test_an_unknown_session_is_told_to_attach_again(worker: RawWorker, method: str) -> None:
    code, details = _refusal(lambda: worker.call(method, b"", b"unknown session!"))
    assert code is grpc.StatusCode.ABORTED
    assert "attach again" in details


@pytest.mark.parametrize("method", _METHODS)
def test_a_call_without_a_session_is_told_the_metadata(worker: RawWorker, method: str) -> None:
    code, details = _refusal(lambda: worker.call(method, b""))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "kvtier-session-bin" in details


def test_an_unknown_attach_token_is_refused(worker: RawWorker) -> None:
    request = pb.OpenSessionRequest(namespace=spec_message(spec_of()), attach_token=b"x" * 16)
    code, details = _refusal(lambda: worker.call("OpenSession", request))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "attach_token" in details


_BAD_SPECS = [
    (block_pb2.NamespaceSpec(block_bytes=[4096]), "namespace.name"),
    (block_pb2.NamespaceSpec(name="A", block_bytes=[4096]), "namespace.name"),
    (block_pb2.NamespaceSpec(name="a/b", block_bytes=[4096]), "namespace.name"),
    (block_pb2.NamespaceSpec(name="a", tenant="B!", block_bytes=[4096]), "namespace.tenant"),
    (block_pb2.NamespaceSpec(name="a"), "namespace.block_bytes"),
    (block_pb2.NamespaceSpec(name="a", block_bytes=[0]), "namespace.block_bytes[0]"),
    (block_pb2.NamespaceSpec(name="a", block_bytes=[1 << 62]), "namespace.block_bytes[0]"),
    (block_pb2.NamespaceSpec(name="a", block_bytes=[4096] * 257), "namespace.block_bytes has 257"),
    (block_pb2.NamespaceSpec(name="a", block_bytes=[1], shards=1 << 20), "namespace.shards"),
    (block_pb2.NamespaceSpec(name="a", block_bytes=[1], model="m" * 1025), "namespace.model"),
    (block_pb2.NamespaceSpec(name="a", block_bytes=[1], extra={"k": "v" * 1025}), "extra['k']"),
]


@pytest.mark.parametrize(("spec", "words"), _BAD_SPECS)
def test_a_bad_spec_is_named(worker: RawWorker, spec: block_pb2.NamespaceSpec, words: str) -> None:
    request = pb.OpenSessionRequest(namespace=spec, attach_token=worker.token)
    code, details = _refusal(lambda: worker.call("OpenSession", request))
    assert code is _INVALID
    assert words in details


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"indexes": [2]}, "indexes: 2"), ({"digests": b"x" * 16}, "digests: 1 for")],
)
def test_a_commit_beyond_its_reservation_is_refused(
    worker: RawWorker, session: bytes, fields: dict[str, Any], words: str
) -> None:
    answer = worker.call("ReserveBlocks", pb.ReserveBlocksRequest(keys=[_GOOD]), session)
    lease_id = answer.reservation.lease_id
    request = pb.CommitBlocksRequest(reservation_id=lease_id, **fields)
    code, details = _refusal(lambda: worker.call("CommitBlocks", request, session))
    assert code is _INVALID
    assert words in details
    worker.call("ReleaseLeases", pb.ReleaseLeasesRequest(lease_ids=[lease_id]), session)


def test_an_unknown_reservation_has_expired(worker: RawWorker, session: bytes) -> None:
    request = pb.CommitBlocksRequest(reservation_id=1 << 60, indexes=[0, 1])
    answer = worker.call("CommitBlocks", request, session)
    assert list(answer.status) == [block_pb2.EXPIRED] * 2


def test_another_sessions_reservation_has_expired(worker: RawWorker, session: bytes) -> None:
    request = pb.ReserveBlocksRequest(keys=[keys_message(hashes_of("mine", 2))])
    lease_id = worker.call("ReserveBlocks", request, session).reservation.lease_id
    other = worker.open(spec_of())
    worker.call("ReleaseLeases", pb.ReleaseLeasesRequest(lease_ids=[lease_id]), other)
    commit = pb.CommitBlocksRequest(reservation_id=lease_id)
    assert list(worker.call("CommitBlocks", commit, other).status) == [block_pb2.EXPIRED]
    assert list(worker.call("CommitBlocks", commit, session).status) == [block_pb2.OK] * 2


def test_a_session_ends_with_its_attach_connection(worker: RawWorker, session: bytes) -> None:
    worker.call("TouchBlocks", pb.TouchBlocksRequest(keys=_GOOD), session)
    worker.detach()
    request = pb.LookupPrefixRequest(keys=[_GOOD])
    code, _ = _refusal(lambda: [worker.call("LookupPrefix", request, session) for _ in range(1000)])
    assert code is grpc.StatusCode.ABORTED


@dataclass(frozen=True)
class AdminCase:
    method: str
    request: Message
    code: grpc.StatusCode
    words: str


_ADMIN_CASES = [
    AdminCase(
        "GetStats",
        admin_pb.GetStatsRequest(namespace="default/none"),
        grpc.StatusCode.NOT_FOUND,
        "no namespace 'default/none'",
    ),
    AdminCase("EvictBlocks", admin_pb.EvictBlocksRequest(), _INVALID, "namespace is empty"),
    AdminCase(
        "EvictBlocks",
        admin_pb.EvictBlocksRequest(namespace="a/b"),
        grpc.StatusCode.NOT_FOUND,
        "no namespace 'a/b'",
    ),
    AdminCase(
        "ListSessions", admin_pb.ListSessionsRequest(page_size=-1), _INVALID, "page_size is -1"
    ),
    AdminCase(
        "ListNamespaces", admin_pb.ListNamespacesRequest(page_token="x"), _INVALID, "page_token"
    ),
]


@pytest.mark.parametrize("case", _ADMIN_CASES, ids=lambda case: f"{case.method} {case.words}")
def test_operators_mistakes_are_named(agent: AgentProcess, case: AdminCase) -> None:
    with grpc.insecure_channel(agent.admin_address) as channel:
        call: Any = channel.unary_unary(f"/kvtier.v1.CacheAdmin/{case.method}")
        code, details = _refusal(lambda: call(case.request.SerializeToString(), timeout=5))
    assert code is case.code
    assert case.words in details


def test_too_many_namespaces_and_sessions_are_overload() -> None:
    with (
        running_agent("16MiB", limits__max_namespaces=2, limits__max_sessions=4) as agent,
        RawWorker(agent.directory) as worker,
    ):
        for name in ("a", "b"):
            worker.open(spec_of(name))
        code, details = _refusal(lambda: worker.open(spec_of("c")))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_namespaces" in details
        code, details = _refusal(lambda: _open_for_ever(worker, spec_of("a")))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_sessions" in details


def _open_for_ever(worker: RawWorker, spec: NamespaceSpec) -> None:
    for _ in range(100):
        worker.open(spec)
