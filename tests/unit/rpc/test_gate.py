"""What is the same for every call: admission, parsing, errors, over gRPC and directly."""

from __future__ import annotations

import asyncio
import logging

import pytest
from google.protobuf.descriptor import MethodDescriptor

from kvtier.core.attach import DirectCall
from kvtier.core.status import CODES, Code
from kvtier.errors import InvalidRequestError, KvtierError, OverloadedError
from kvtier.rpc.direct import DirectCalls
from kvtier.rpc.server import Call, Gate, parsed, status_of
from kvtier.v1 import block_cache_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["BlockCache"]
LOOKUP: MethodDescriptor = SERVICE.methods_by_name["LookupPrefix"]


def test_a_gate_admits_so_many_and_refuses_the_next() -> None:
    gate = Gate(2)
    with gate, gate:
        for _ in range(2):
            with pytest.raises(OverloadedError, match=r"limits\.max_calls"), gate:
                pytest.fail("admitted")
        assert gate.rejected_count == 2
    with gate:
        pass


def test_a_call_that_fails_leaves_the_gate() -> None:
    gate = Gate(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), gate:
            raise ZeroDivisionError
    assert gate.rejected_count == 0


def test_what_is_no_request_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"^not a LookupPrefixRequest"):
        parsed(pb.LookupPrefixRequest, b"\xff\xff")


@pytest.mark.parametrize("kind", list(CODES))
def test_an_exception_becomes_its_code_with_its_message(kind: type[KvtierError]) -> None:
    assert status_of(LOOKUP, kind("mend this")) == (CODES[kind], "mend this")


def test_a_bug_is_logged_under_the_id_that_the_caller_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        code, message = status_of(LOOKUP, ZeroDivisionError("secret"))
    assert code is Code.INTERNAL
    assert "secret" not in message
    [record] = caplog.records
    assert message.split()[-1] in record.getMessage()
    assert record.exc_info


class Servicer:
    """Answers lookups with what it was asked, and fails other calls."""

    async def LookupPrefix(  # noqa: N802
        self, request: pb.LookupPrefixRequest, call: Call
    ) -> pb.LookupPrefixResponse:
        assert call.session_token == b"token"
        return pb.LookupPrefixResponse(hold_id=len(request.keys))

    def __getattr__(self, name: str) -> object:
        if name not in SERVICE.methods_by_name:
            raise AttributeError(name)

        async def fail(request: object, call: Call) -> None:
            raise OverloadedError(name)

        return fail


def answer(method: str, request: bytes, gate: Gate | None = None) -> tuple[int, bytes]:
    calls = DirectCalls(SERVICE, Servicer(), gate or Gate(1))
    direct = DirectCall(method, b"token", 1000, request)
    return asyncio.run(calls.answer(direct))


def test_a_direct_call_is_answered_as_one_of_grpc() -> None:
    request = pb.LookupPrefixRequest()
    request.keys.add()
    code, data = answer("LookupPrefix", request.SerializeToString())
    assert code == 0
    assert pb.LookupPrefixResponse.FromString(data).hold_id == 1


@pytest.mark.parametrize(
    ("method", "request_data", "code", "word"),
    [
        ("LoadBlocks", b"", Code.RESOURCE_EXHAUSTED, b"LoadBlocks"),
        ("Nonsense", b"", Code.INVALID_ARGUMENT, b"'Nonsense'"),
        ("LookupPrefix", b"\xff", Code.INVALID_ARGUMENT, b"LookupPrefixRequest"),
    ],
)
def test_a_direct_call_fails_as_one_of_grpc(
    method: str, request_data: bytes, code: Code, word: bytes
) -> None:
    answered, message = answer(method, request_data)
    assert answered == code
    assert word in message


def test_direct_calls_pass_the_same_gate() -> None:
    gate = Gate(0)
    assert answer("LookupPrefix", b"", gate)[0] == Code.RESOURCE_EXHAUSTED
    assert gate.rejected_count == 1
