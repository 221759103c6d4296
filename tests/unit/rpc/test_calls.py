"""What is the same for every call: admission, parsing, errors, over gRPC and directly."""

from __future__ import annotations

import asyncio
import logging

import pytest
from google.protobuf.descriptor import MethodDescriptor

from kvtier.agent.serving.admission import Admission, AdmissionLimits, Work
from kvtier.core.attach import DirectCall
from kvtier.core.retry_info import overloaded_error
from kvtier.core.status import CODES, Code
from kvtier.errors import InvalidRequestError, KvtierError, OverloadedError
from kvtier.rpc.call_counts import CallCounts
from kvtier.rpc.direct import DirectCalls
from kvtier.rpc.server import Call, parsed, status_of
from kvtier.v1 import block_cache_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["BlockCache"]
LOOKUP: MethodDescriptor = SERVICE.methods_by_name["LookupPrefix"]


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


def answer(
    method: str,
    request: bytes,
    admission: Admission | None = None,
    counts: CallCounts | None = None,
) -> tuple[int, bytes]:
    calls = DirectCalls(SERVICE, Servicer(), admission or Admission(AdmissionLimits()), counts)
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
    counts = CallCounts()
    answered, message = answer(method, request_data, counts=counts)
    assert answered == code
    assert word in message
    known = {method} & set(SERVICE.methods_by_name)
    assert counts == {(each, code.name): 1 for each in known}


def test_direct_calls_pass_the_same_admission() -> None:
    admission = Admission(AdmissionLimits(calls=1))
    with admission.call(Work.ASK, b"other"):
        code, data = answer("LookupPrefix", b"", admission)
        assert code == Code.RESOURCE_EXHAUSTED
        refusal = overloaded_error(data)
        assert "limits.max_calls" in str(refusal)
        assert refusal.retry_after_seconds > 0
    assert admission.refused == {Work.ASK: 1}
    assert answer("LookupPrefix", b"", admission)[0] == 0
