"""Stands before the services of a listener that others can reach: who calls, and may they?"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

import grpc.aio
from google.protobuf.descriptor import MethodDescriptor

from kvtier.access.certificates import certified_names
from kvtier.access.credential import Caller, Credential
from kvtier.access.keyring import Keyring
from kvtier.access.policy import is_steering, require_reach, require_role
from kvtier.errors import AccessDeniedError, UnauthenticatedError

log = logging.getLogger(__name__)

_METADATA: Final = "authorization"
_SCHEME: Final = "bearer "
_TLS: Final = b"TLSv1.3"


class Guard:
    """Each call shows a token, or else the certificate of its connection; what it may, the policy
    says. A token counts for itself: the certificate's names add nothing to it."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def caller(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """Raises UnauthenticatedError."""
        try:
            return Caller(self._credential(context), context.peer())
        except UnauthenticatedError as error:
            log.warning("a call from %s is refused: %s", context.peer(), error)
            raise

    def _credential(self, context: grpc.aio.ServicerContext[Any, Any]) -> Credential:
        properties = context.auth_context()
        if any(version != _TLS for version in properties.get("ssl_tls_version", ())):
            raise UnauthenticatedError("TLS 1.3 is required")
        token = _token(context)
        if token is not None:
            return self._keyring.by_token(token)
        return self._keyring.by_certificate(certified_names(properties))

    def guarded(
        self, method: MethodDescriptor, behaviour: Callable[[Any, Any], Any]
    ) -> Callable[[Any, Any], Any]:
        """A servicer's method that refuses, with an AccessDeniedError, what the policy does."""
        name, is_noted = method.full_name, is_steering(method.full_name)

        def admit(request: Any, caller: Caller) -> None:
            whose = caller.credential.name
            try:
                require_role(caller.credential, name)
                if not method.client_streaming:
                    require_reach(caller.credential, name, request)
            except AccessDeniedError:
                log.warning("%s by %s, from %s, is refused", method.name, whose, caller.connection)
                raise
            if is_noted:
                log.info("%s by %s, from %s", method.name, whose, caller.connection)

        async def answer(request: Any, call: Any) -> Any:
            admit(request, call.caller)
            return await behaviour(request, call)

        async def stream(request: Any, call: Any) -> AsyncIterator[Any]:
            admit(request, call.caller)
            credential = call.caller.credential
            async with aclosing(behaviour(request, call)) as messages:
                async for message in messages:
                    self._keyring.require_current(credential)  # it may have ended meanwhile
                    yield message

        return stream if method.server_streaming else answer


def _token(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """Of `authorization: Bearer TOKEN`, None without it; raises UnauthenticatedError for else."""
    found = [value for key, value in context.invocation_metadata() or () if key == _METADATA]
    if not found:
        return None
    value = found[0]
    text = value if isinstance(value, str) else ""
    if len(found) > 1 or text[: len(_SCHEME)].lower() != _SCHEME:
        raise UnauthenticatedError("metadata authorization must be there once, as Bearer TOKEN")
    return text[len(_SCHEME) :]
