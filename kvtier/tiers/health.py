"""How a device or a server is."""

from __future__ import annotations

from enum import IntEnum


class Health(IntEnum):
    """What it is good for; the greatest is the worst."""

    ACTIVE = 1
    #: Reads only.
    DEGRADED = 2
    UNAVAILABLE = 3
