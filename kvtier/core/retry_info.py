"""When a call that was refused for overload may be tried again: google.rpc.RetryInfo.

It travels in a google.rpc.Status: with gRPC in the trailing metadata, where its libraries expect
it, and as the body of a direct call's answer.
"""

from __future__ import annotations

from typing import Final

from kvtier.core.status import Code
from kvtier.errors import OverloadedError

#: Of gRPC's richer error model.
STATUS_METADATA: Final = "grpc-status-details-bin"


def overloaded_status(error: OverloadedError) -> bytes:
    """A google.rpc.Status."""
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    info = RetryInfo()
    info.retry_delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
    status = Status(code=Code.RESOURCE_EXHAUSTED, message=str(error))
    status.details.add().Pack(info)
    data: bytes = status.SerializeToString()
    return data


def overloaded_error(data: bytes) -> OverloadedError:
    """What `overloaded_status` was made of; of another Status its message."""
    # Not at the top: a client pays for this import when it is refused, and not before.
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    status, info = Status.FromString(data), RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return OverloadedError(status.message, info.retry_delay.ToNanoseconds() / 1e9)
    return OverloadedError(status.message)
