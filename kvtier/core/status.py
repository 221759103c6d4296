"""Which exception is which gRPC status code, in both directions."""

from __future__ import annotations

from enum import IntEnum

from kvtier import errors


class Code(IntEnum):
    """The gRPC status codes that kvtier answers with; names and numbers are gRPC's."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


#: Of exceptions with one code, a client gets the first one back.
CODES: dict[type[errors.KvtierError], Code] = {
    errors.InvalidRequestError: Code.INVALID_ARGUMENT,
    errors.LayoutConflictError: Code.FAILED_PRECONDITION,
    errors.NoSharedMemoryError: Code.FAILED_PRECONDITION,
    errors.UnauthenticatedError: Code.UNAUTHENTICATED,
    errors.AccessDeniedError: Code.PERMISSION_DENIED,
    errors.NotFoundError: Code.NOT_FOUND,
    errors.SessionLostError: Code.ABORTED,
    errors.EventsLostError: Code.OUT_OF_RANGE,
    errors.OverloadedError: Code.RESOURCE_EXHAUSTED,
    errors.AgentUnavailableError: Code.UNAVAILABLE,
    errors.DeadlineExceededError: Code.DEADLINE_EXCEEDED,
    errors.InternalError: Code.INTERNAL,
}

ERRORS: dict[int, type[errors.KvtierError]] = {
    code: error for error, code in reversed(CODES.items())
}
