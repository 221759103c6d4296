"""Which exception is which gRPC status code, in both directions."""

from __future__ import annotations

from kvtier import errors

#: Names of gRPC codes; no code stands here twice, so that a client gets the same exception back.
CODES: dict[type[errors.KvtierError], str] = {
    errors.InvalidRequestError: "INVALID_ARGUMENT",
    errors.LayoutConflictError: "FAILED_PRECONDITION",
    errors.UnauthenticatedError: "UNAUTHENTICATED",
    errors.AccessDeniedError: "PERMISSION_DENIED",
    errors.NotFoundError: "NOT_FOUND",
    errors.SessionLostError: "ABORTED",
    errors.OverloadedError: "RESOURCE_EXHAUSTED",
    errors.AgentUnavailableError: "UNAVAILABLE",
    errors.DeadlineExceededError: "DEADLINE_EXCEEDED",
    errors.InternalError: "INTERNAL",
}

ERRORS: dict[str, type[errors.KvtierError]] = {code: error for error, code in CODES.items()}
