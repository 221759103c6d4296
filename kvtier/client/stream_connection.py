"""A client's connection without shared memory: bytes come and go by streams."""

from __future__ import annotations

from contextlib import closing
from typing import Any, TypeVar

from kvtier.client.connection import SESSION_METADATA
from kvtier.client.endpoint import Endpoint
from kvtier.client.service import Service
from kvtier.client.sessions import OpenSessions, refused
from kvtier.client.streaming import Call, Read, Step, Steps
from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import AccessDeniedError, KvtierError, SessionLostError, UnauthenticatedError
from kvtier.v1 import block_cache_pb2 as pb

T = TypeVar("T")


class StreamConnection:
    """A channel and open sessions. Thread-safe.

    A session that has ended meanwhile is opened again. `refusal` is why the client has no shared
    memory, if it wanted it: then another run of the agent is a lost session, so that the client
    tries to attach to that.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        worker: str,
        timeout_seconds: float,
        refusal: KvtierError | None = None,
    ) -> None:
        self._service = Service(endpoint, pb.DESCRIPTOR.services_by_name["BlockCache"])
        self._timeout_seconds = timeout_seconds
        self._refusal = refusal
        try:
            self.epoch = self.null_call(timeout_seconds)
        except BaseException:
            self._service.close()
            raise
        self._worker = worker
        self._sessions = OpenSessions()

    def run(self, spec: NamespaceSpec, steps: Steps[T]) -> T:
        """Takes the steps one after the other, each within the timeout."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._perform(spec, step)
                except KvtierError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _perform(self, spec: NamespaceSpec, step: Step) -> Any:
        """One step, in another session if that of before has ended: its answer."""
        token = self._session(spec)
        try:
            return self._exchange(token, step)
        except (SessionLostError, UnauthenticatedError):  # it ended, or was another connection's
            self._sessions.forget(spec, token)
            if self._refusal is not None and self.null_call(self._timeout_seconds) != self.epoch:
                raise
            return self._exchange(self._session(spec), step)

    def _exchange(self, session: bytes, step: Step) -> Any:
        metadata = ((SESSION_METADATA, session),)
        timeout_seconds = self._timeout_seconds
        if isinstance(step, Call):
            return self._service.call(step.method, step.request, timeout_seconds, metadata)
        if isinstance(step, Read):
            answers = self._service.receive("ReadBlocks", step.request, timeout_seconds, metadata)
            with closing(answers):
                for message in answers:
                    step.take(message)
            return None
        return self._service.send("WriteBlocks", step.messages(), timeout_seconds, metadata)

    def _session(self, spec: NamespaceSpec) -> bytes:
        token = self._sessions.find(spec)
        if token is not None:
            return token
        try:
            answer = self._service.call(
                "OpenSession", self._sessions.request(spec, self._worker), self._timeout_seconds
            )
        except AccessDeniedError as error:
            if self._refusal is None:
                raise
            if self.null_call(self._timeout_seconds) != self.epoch:
                raise SessionLostError("the agent was restarted; attach again") from error
            raise refused(self._refusal, error) from error
        return self._sessions.opened(spec, answer)

    def null_call(self, timeout_seconds: float) -> int:
        """A gRPC call that does nothing; the agent's epoch."""
        answer = self._service.call("GetCapabilities", pb.GetCapabilitiesRequest(), timeout_seconds)
        epoch: int = answer.epoch
        return epoch

    def retire(self) -> bool:
        """Gives the connection up; nobody writes to slots over it."""
        return True

    def close(self) -> None:
        self._service.close()
