"""Every exception that kvtier raises on purpose.

    KvtierError
    ├── ConfigError                 a configuration file, variable or option is wrong
    ├── InvalidRequestError         a field of a request is wrong; mend it, do not retry
    ├── LayoutConflictError         the name belongs to another layout, and the agent rejects that
    ├── NoSharedMemoryError         the session has none, or has it; the message says what to use
    ├── UnauthenticatedError        no credentials, or unknown ones
    ├── AccessDeniedError           the credentials do not cover this
    ├── NotFoundError               no such namespace, pin or tier
    ├── SessionLostError            unknown session or another epoch; attach again
    ├── EventsLostError             changes that are asked for are no longer kept; take a snapshot
    ├── OverloadedError             too much is in flight
    ├── AgentUnavailableError       no agent, or it is not serving
    ├── DeadlineExceededError       the agent did not answer in time
    └── InternalError               a broken invariant; carries an id to find in the agent's log

Absence is not an error: a block that is not cached is a `BlockStatus`.
"""

from __future__ import annotations


class KvtierError(Exception):
    """The base of all of them."""


class ConfigError(KvtierError):
    """The message names the source, the key and what is allowed."""


class InvalidRequestError(KvtierError):
    """The message names the field."""


class LayoutConflictError(KvtierError):
    """The message names the fields that differ."""


class NoSharedMemoryError(KvtierError):
    """Slots are for sessions that attached, streams for those that did not."""


class UnauthenticatedError(KvtierError):
    """The caller did not say who it is, or said something unknown."""


class AccessDeniedError(KvtierError):
    """The caller is known and may not do this."""


class NotFoundError(KvtierError):
    """What the request names does not exist."""


class SessionLostError(KvtierError):
    """The agent does not know this session; everything leased through it is gone."""


class EventsLostError(KvtierError):
    """Somebody watched too slowly, or came back too late; the message says what is kept."""


class OverloadedError(KvtierError):
    """Refused before any work was done; it may be let in after `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class AgentUnavailableError(KvtierError):
    """There is no agent, or it is not serving; `KvtierError` for callers that just go on."""


class DeadlineExceededError(KvtierError):
    """The call took longer than its deadline."""


class InternalError(KvtierError):
    """A bug of kvtier; the message carries the id under which the agent logged it."""
