"""Fixtures for all tests: every test leaves this process as it found it."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.faults.waiting import wait_until

_GRACE_SECONDS = 5.0
_MEMORY = Path("/dev/shm")
_MEMORY_PREFIX = "kvtier-test-"

#: gRPC's core keeps a pool of native pollers; these kinds of descriptors come and go with it. No
#: code here opens an event or epoll descriptor but event loops, whose sockets are seen below.
_POLLER_KINDS = ("anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[timerfd]")
#: gRPC for asyncio runs one poller thread for the process from its first use on.
_POLLER_THREAD = "_poll_wrapper"


@dataclass(frozen=True)
class Resources:
    """What this process has that could be left behind."""

    threads: frozenset[str]
    descriptors: frozenset[str]
    children: frozenset[int]
    shared_memory: frozenset[str]

    def beyond(self, other: Resources) -> list[str]:
        """What is here and was not there."""
        return [
            f"{kind} {each}"
            for kind in ("threads", "descriptors", "children", "shared_memory")
            for each in sorted(getattr(self, kind) - getattr(other, kind), key=str)
        ]


def _threads() -> frozenset[str]:
    return frozenset(
        f"{each.name} ({each.ident})"
        for each in threading.enumerate()
        if _POLLER_THREAD not in each.name
    )


def _descriptors() -> frozenset[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target not in _POLLER_KINDS:
            found.add(f"{fd} {target}")
    return frozenset(found)


def _children() -> frozenset[int]:
    """Zombies too: a test waits for what it starts."""
    children: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            children.update(map(int, (task / "children").read_text().split()))
    return frozenset(children)


def _resources() -> Resources:
    return Resources(_threads(), _descriptors(), _children(), _shared_memory())


def _shared_memory() -> frozenset[str]:
    """Without what `multiprocessing` of other processes makes, which no code here uses, and the
    directories of tests that run beside this one, which remove them themselves."""
    return frozenset(
        each
        for each in os.listdir(_MEMORY)
        if not each.startswith(("psm_", "sem.mp-", _MEMORY_PREFIX))
    )


@pytest.fixture(scope="module")
def memory_path() -> Iterator[Path]:
    """A directory in memory, where nothing waits for a device that other tests write to."""
    with tempfile.TemporaryDirectory(prefix=_MEMORY_PREFIX, dir=_MEMORY) as path:
        yield Path(path)


@pytest.fixture(scope="session", autouse=True)
def _grpc_started() -> None:
    """Makes gRPC open what it keeps for the life of the process."""
    with grpc.insecure_channel("unix:/nonexistent") as channel:
        call: Any = channel.unary_unary("/none/None")
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=1)


@pytest.fixture(autouse=True)
def _nothing_left_behind(_grpc_started: None) -> Iterator[None]:
    """Fails a test that leaves a thread, descriptor, child or shared memory behind."""
    before = _resources()
    yield

    def left() -> list[str]:
        return _resources().beyond(before)

    if left():
        gc.collect()
        try:
            wait_until(lambda: not left(), _GRACE_SECONDS)
        except AssertionError:
            pytest.fail(f"left behind: {left()}")
