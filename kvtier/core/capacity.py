"""The least that tiers are of use with."""

from __future__ import annotations

from typing import Final

LEAST_HOST_BYTES: Final = 1 << 20
LEAST_DEVICE_BYTES: Final = 1 << 20
"""Of each device."""
LEAST_DISK_PATH_BYTES: Final = 16 << 20
"""Of each directory."""
