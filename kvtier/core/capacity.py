"""What tiers may have."""

from __future__ import annotations

from typing import Final

#: The least that they are of use with.
LEAST_HOST_BYTES: Final = 1 << 20
LEAST_DEVICE_BYTES: Final = 1 << 20
"""Of each device."""
LEAST_DISK_PATH_BYTES: Final = 16 << 20
"""Of each directory."""

#: More is a mistake, and what is made in proportion to it would not fit into memory.
MOST_HOST_BYTES: Final = 1 << 44
MOST_DISK_BYTES: Final = 1 << 50
