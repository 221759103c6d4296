"""The sessions that a client has opened, by namespace."""

from __future__ import annotations

import logging
from typing import Any

from kvtier.core.namespace import Identity, NamespaceSpec
from kvtier.errors import AccessDeniedError, KvtierError
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2

log = logging.getLogger(__name__)


class OpenSessions:
    """Tokens, and the requests for them. Thread-safe: each method is one operation on a dict."""

    def __init__(self, attach_token: bytes = b"") -> None:
        self._attach_token = attach_token
        self._tokens: dict[Identity, bytes] = {}

    def find(self, spec: NamespaceSpec) -> bytes | None:
        return self._tokens.get(spec.identity)

    def request(self, spec: NamespaceSpec, worker: str) -> pb.OpenSessionRequest:
        return pb.OpenSessionRequest(
            namespace=spec_message(spec), attach_token=self._attach_token, worker=worker
        )

    def opened(self, spec: NamespaceSpec, answer: Any) -> bytes:
        """Notes an answer to `request`. Another thread's token wins, if it was faster."""
        if answer.sibling_differences:
            log.warning(
                "kvtier: another layout is registered under the name of namespace %s; they share "
                "no blocks, and differ in %s",
                spec.label,
                ", ".join(answer.sibling_differences),
            )
        return self._tokens.setdefault(spec.identity, answer.session_token)

    def forget(self, spec: NamespaceSpec, token: bytes) -> None:
        """This session has ended; another one may have taken its place."""
        if self._tokens.get(spec.identity) == token:
            self._tokens.pop(spec.identity, None)


def spec_message(spec: NamespaceSpec) -> block_pb2.NamespaceSpec:
    fields: dict[str, Any] = spec.layout_fields()
    return block_pb2.NamespaceSpec(tenant=spec.tenant, name=spec.name, **fields)


def refused(attaching: KvtierError, streaming: AccessDeniedError) -> AccessDeniedError:
    """Neither way is open."""
    return AccessDeniedError(f"{attaching}; without shared memory: {streaming}")
