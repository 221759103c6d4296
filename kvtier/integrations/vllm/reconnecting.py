"""A call that finds the agent restarted is made once more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from kvtier.client.client import Client
from kvtier.errors import AgentUnavailableError, SessionLostError

T = TypeVar("T")

_POLL_SECONDS = 0.002


def call(client: Client, wait_seconds: float, action: Callable[[], T]) -> T:
    """What `action` returns. If it finds that the agent it knew is gone, and one answers again
    within `wait_seconds`, it is done a second time; if none was known before, it fails at once.

    An agent that hangs is not waited for a second time.
    """
    was_connected = client.is_connected
    try:
        return action()
    except (AgentUnavailableError, SessionLostError):
        if not was_connected:
            raise
        deadline = time.monotonic() + wait_seconds
        while not client.is_connected:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
    return action()
