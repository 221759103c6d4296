"""Directories for the crash tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def memory_path() -> Iterator[Path]:
    """A directory in memory where there is one: thousands of copies would wait for a device."""
    parent = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="kvtier-crash-", dir=parent) as path:
        yield Path(path)
