"""What is wrong with the cluster, in kvtier's words rather than redis-py's."""

from __future__ import annotations

import errno
import re
from enum import Enum

from redis import exceptions as theirs

_MAX_REASON_LENGTH = 200


class Failure(Enum):
    """Why the cluster does not do something now."""

    CONNECTION = "connection"  #: refused, reset, closed, or TLS failed
    TIMEOUT = "timeout"  #: the deadline passed, or a server did not let itself be connected to
    LOADING = "loading"  #: the server reads its data from disk
    CLUSTER_DOWN = "cluster down"  #: slots without a server, no master, or too many redirects
    READ_ONLY = "read only"  #: a replica
    OUT_OF_MEMORY = "out of memory"  #: maxmemory is reached and nothing may be evicted
    AUTHENTICATION = "authentication"  #: user, password or permissions
    PROTOCOL = "protocol"  #: what answered does not speak RESP, or not to what was asked
    REFUSED = "refused"  #: any other error reply


class ClusterDownError(OSError):
    """The cluster did not do it; `failure` and the message say why. Nothing is half done."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(errno.EIO, f"{failure.value}: {_short(reason)}")
        self.failure = failure


#: The first that fits counts, so subclasses come before their bases.
_KINDS: tuple[tuple[type[BaseException], Failure], ...] = (
    (theirs.AuthenticationError, Failure.AUTHENTICATION),
    (theirs.AuthorizationError, Failure.AUTHENTICATION),
    (theirs.NoPermissionError, Failure.AUTHENTICATION),
    (theirs.BusyLoadingError, Failure.LOADING),
    (theirs.ReadOnlyError, Failure.READ_ONLY),
    (theirs.OutOfMemoryError, Failure.OUT_OF_MEMORY),
    (theirs.ClusterError, Failure.CLUSTER_DOWN),
    (theirs.RedisClusterException, Failure.CLUSTER_DOWN),
    (theirs.AskError, Failure.CLUSTER_DOWN),
    (theirs.TryAgainError, Failure.CLUSTER_DOWN),
    (theirs.InvalidResponse, Failure.PROTOCOL),
    (theirs.TimeoutError, Failure.TIMEOUT),
    (TimeoutError, Failure.TIMEOUT),
    (theirs.ConnectionError, Failure.CONNECTION),
    (OSError, Failure.CONNECTION),
    (theirs.RedisError, Failure.REFUSED),
)
#: What redis-py and its neighbours raise; anything else is a bug and goes through.
REDIS_ERRORS = (theirs.RedisError, theirs.RedisClusterException, OSError)


def cluster_down(error: BaseException) -> ClusterDownError:
    """What a caller gets to see of an error of redis-py or of a socket."""
    if isinstance(error, ClusterDownError):
        return error
    for kind, failure in _KINDS:
        if isinstance(error, kind):
            return ClusterDownError(failure, str(error) or type(error).__name__)
    return ClusterDownError(Failure.REFUSED, str(error))


def _short(reason: str) -> str:
    printable = re.sub(r"[^\x20-\x7e]+", " ", reason).strip()
    return printable[:_MAX_REASON_LENGTH]
