"""A connection to the agent's admin socket whose errors tell an operator what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvtier.errors import AgentUnavailableError, DeadlineExceededError

if TYPE_CHECKING:
    from kvtier.client.admin import AdminClient


@contextmanager
def admin(address: str, timeout_seconds: float) -> Iterator[AdminClient]:
    """An AdminClient, closed at the end."""
    from kvtier.client.admin import AdminClient

    try:
        with AdminClient(address, timeout_seconds=timeout_seconds) as client:
            yield client
    except AgentUnavailableError as error:
        raise AgentUnavailableError(
            f"no agent at {address}: start one with `kvtier agent`, "
            "or name its socket with --address"
        ) from error
    except DeadlineExceededError as error:
        raise DeadlineExceededError(
            f"the agent at {address} did not answer within {timeout_seconds:g} s: "
            "see whether it hangs, or raise --timeout"
        ) from error
