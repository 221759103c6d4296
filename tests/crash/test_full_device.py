"""A device that is really full, and one that must keep some space free."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.agent.operating.stats import TierState
from kvtier.core.block import Tier
from kvtier.errors import KvtierError
from tests.crash.node import KIB, MIB, Node, Sizes, run
from tests.crash.test_faulty_device import until_active
from tests.faults.blocks import hashes_of, spec_of
from tests.faults.repetitions import times

pytestmark = pytest.mark.crash

_SPECS = (spec_of("small", 4 * KIB), spec_of("large", 60 * KIB))
_COUNTS = {"small": 32, "large": 4}
_FLUSH_SECONDS = 10.0
_DEVICE_BYTES = 12 * MIB
_MIN_FREE_BYTES = 4 * MIB


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    path = tmp_path / "device"
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={_DEVICE_BYTES}".encode()
    if libc.mount(b"tmpfs", bytes(path), b"tmpfs", 0, options):
        pytest.skip(f"mount is not permitted: {os.strerror(ctypes.get_errno())}")
    try:
        yield path
    finally:
        assert libc.umount2(bytes(path), 0) == 0, os.strerror(ctypes.get_errno())


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@pytest.mark.parametrize("min_free_bytes", [0, _MIN_FREE_BYTES])
def test_a_full_device_is_used_as_far_as_it_goes(device: Path, min_free_bytes: int) -> None:
    run(lambda: _fill(device, min_free_bytes))


async def _fill(device: Path, min_free_bytes: int) -> None:
    """Its capacity is more than the device has."""
    sizes = Sizes(disk_bytes=64 * MIB, host_bytes=MIB, min_free_bytes=min_free_bytes)
    for life in range(times(5)):
        node = Node([device / "disk"], sizes)
        await node.start()
        stored: list[bytes] = []
        for number in range(40):
            spec = _SPECS[number % 4 == 0]
            hashes = await node.store(spec, hashes_of(f"{life}/{number}", _COUNTS[spec.name]))
            await node.disk.writer.settled()
            assert _free_bytes(device) >= min_free_bytes
            if spec is _SPECS[0]:
                stored += hashes
        await until_active(node)
        await _flush_at_last(node)
        node.audit()
        assert _DEVICE_BYTES - _free_bytes(device) > (_DEVICE_BYTES - min_free_bytes) // 4
        node.empty_host()
        answer = await node.load(_SPECS[0], stored)
        assert answer.wrong == []
        assert set(stored[-32:]) <= set(answer.right), "the youngest are kept"
        await node.stop()


async def _flush_at_last(node: Node) -> None:
    """There is room soon: after a growth that failed the next one is tried a second later."""
    deadline = time.monotonic() + _FLUSH_SECONDS
    while True:
        try:
            await node.upkeep.flush(Tier.DISK)
        except KvtierError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


def test_it_stops_writing_while_others_fill_the_device(device: Path) -> None:
    run(lambda: _crowd(device))


async def _crowd(device: Path) -> None:
    sizes = Sizes(disk_bytes=8 * MIB, host_bytes=MIB, min_free_bytes=_MIN_FREE_BYTES)
    node = Node([device / "disk"], sizes)
    await node.start()
    early = await node.store(_SPECS[0], hashes_of("early", 32))
    await node.upkeep.flush(Tier.DISK)
    other = device / "other"
    other.write_bytes(bytes(_free_bytes(device) - _MIN_FREE_BYTES + MIB))
    for number in range(100):
        await node.store(_SPECS[0], hashes_of(f"late {number}", 16))
        await node.disk.writer.settled()
    assert _free_bytes(device) >= _MIN_FREE_BYTES - MIB - 256 * KIB
    if node.stats().state == TierState.DEGRADED:
        assert "min_free" in node.stats().reason
        with pytest.raises(KvtierError):
            await node.upkeep.flush(Tier.DISK)
    other.unlink()
    await until_active(node)
    late = await node.store(_SPECS[0], hashes_of("after", 16))
    await _flush_at_last(node)
    node.empty_host()
    assert (await node.load(_SPECS[0], late)).right == late
    assert (await node.load(_SPECS[0], early)).wrong == []
    await node.stop()
