"""Keeping the event loop's turns short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

#: Sizes of slices that take well under 1 ms.
READ_SLICE = 512
WRITE_SLICE = 64


async def slices(count: int, size: int) -> AsyncIterator[slice]:
    """Cuts a batch; other work gets its turn between two slices."""
    for start in range(0, count, size):
        if start:
            await asyncio.sleep(0)
        yield slice(start, min(start + size, count))
