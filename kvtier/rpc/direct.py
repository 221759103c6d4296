"""BlockCache without gRPC, for workers of the same node."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvtier.agent.serving.admission import Admission
from kvtier.core.attach import DirectCall
from kvtier.core.retry_info import overloaded_status
from kvtier.core.status import CODES
from kvtier.errors import InvalidRequestError, OverloadedError
from kvtier.rpc.call_counts import CallCounts
from kvtier.rpc.server import Call, parsed, status_of, work_of


class DirectCalls:
    """Answers calls that came over an attach connection exactly as `Server` answers those of gRPC.

    A gRPC call takes 0.3 to 0.5 ms on one node, as long as copying 8 MiB; this takes a tenth.
    """

    def __init__(
        self,
        service: ServiceDescriptor,
        servicer: object,
        admission: Admission,
        calls: CallCounts | None = None,
    ) -> None:
        self._admission = admission
        self._calls = CallCounts() if calls is None else calls
        self._service = service
        self._methods: dict[str, tuple[MethodDescriptor, type[Message], Any]] = {
            method.name: (
                method,
                GetMessageClass(method.input_type),
                getattr(servicer, method.name),
            )
            for method in service.methods
            if not (method.client_streaming or method.server_streaming)
        }

    async def answer(self, direct: DirectCall) -> tuple[int, bytes]:
        """A status code (0: OK), and the body of `core.attach.encode_answer`."""
        if direct.method not in self._methods:
            message = f"{self._service.full_name} has no {direct.method!r}"
            return CODES[InvalidRequestError], message.encode()
        method, request_class, behaviour = self._methods[direct.method]
        try:
            call = Call(direct.session_token, direct.timeout_ms / 1000)
            with self._admission.call(work_of(method), direct.session_token):
                response: Message = await behaviour(parsed(request_class, direct.request), call)
                self._calls.succeeded(method)
                return 0, response.SerializeToString()
        except Exception as error:
            code, message = status_of(method, error)
            self._calls.failed(method, code)
            if isinstance(error, OverloadedError):
                return code, overloaded_status(error)
            return code, message.encode()
