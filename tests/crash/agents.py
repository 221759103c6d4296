"""Agents with DISK, what is stored in them, and what of it is there after their deaths."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from kvtier import BlockStatus, Client, NamespaceSpec
from kvtier.client.admin import AdminClient
from kvtier.core.block import Match, Tier
from kvtier.errors import KvtierError
from kvtier.testing import AgentProcess
from kvtier.v1 import cache_admin_pb2 as pb
from tests.faults.blocks import hashes_of, is_right, payloads
from tests.faults.waiting import wait_until

_START_SECONDS = 15.0
_BATCH = 64
_CALL_SECONDS = 10.0
Key = tuple[str, bytes]


@contextmanager
def disk_agent(
    directory: Path, *, host: str, disk: str, paths: Sequence[Path] = (), **settings: object
) -> Iterator[AgentProcess]:
    """An agent that is serving and has read its tables; its sockets are in `directory`."""
    agent = AgentProcess(directory, disk_settings(directory, host, disk, paths, **settings))
    with agent:
        wait_until_recovered(agent)
        yield agent


def disk_settings(
    directory: Path, host: str, disk: str, paths: Sequence[Path] = (), **settings: object
) -> dict[str, object]:
    """Settings are named with __ for the dot."""
    directory.mkdir(mode=0o700, exist_ok=True)
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    return {
        "tiers.host.capacity": host,
        "tiers.host.memory_reserve": 0,
        "tiers.disk.capacity": disk,
        "tiers.disk.paths": ",".join(map(str, paths or [directory / "disk"])),
        "tiers.disk.min_free": 0,
        **keys,
    }


def restart(agent: AgentProcess) -> None:
    """Starts it again after its end; returns when it has read its tables."""
    agent.start()
    wait_until_recovered(agent)


def wait_until_recovered(agent: AgentProcess) -> None:
    with AdminClient(agent.admin_address) as admin:
        wait_until(lambda: disk_stats(admin).state == pb.TierStats.ACTIVE, _START_SECONDS)


def disk_stats(admin: AdminClient) -> pb.TierStats:
    return admin.get_stats().tiers[1]


@dataclass
class Reading:
    """What became of a number of loads."""

    right: set[Key] = field(default_factory=set)
    wrong: set[Key] = field(default_factory=set)
    missing: set[Key] = field(default_factory=set)

    @property
    def count(self) -> int:
        return len(self.right) + len(self.wrong)


def read(client: Client, specs: Sequence[NamespaceSpec], keys: Sequence[Key]) -> Reading:
    """Loads blocks and compares every byte; asks again for what did not arrive."""
    by_name: defaultdict[str, list[bytes]] = defaultdict(list)
    for name, block_hash in keys:
        by_name[name].append(block_hash)
    reading = Reading()
    for spec in specs:
        hashes = by_name[spec.name]
        namespace = client.namespace(spec)
        for first in range(0, len(hashes), _BATCH):
            part = hashes[first : first + _BATCH]
            out = np.zeros((len(part), spec.block_bytes[0]), np.uint8)
            statuses = namespace.load_into(part, out)
            for block_hash, status, row in zip(part, statuses, out, strict=True):
                key = (spec.name, block_hash)
                if status != BlockStatus.OK:
                    reading.missing.add(key)
                elif is_right(spec, block_hash, row):
                    reading.right.add(key)
                else:
                    reading.wrong.add(key)
    return reading


def present(client: Client, spec: NamespaceSpec, hashes: Sequence[bytes]) -> list[bytes]:
    """Those that are in some tier."""
    found = client.namespace(spec).lookup(hashes, match=Match.PRESENCE)
    return [each for each, is_here in zip(hashes, found.present, strict=True) if is_here]


def store(client: Client, spec: NamespaceSpec, hashes: Sequence[bytes]) -> list[Key]:
    """Keys that are in the cache now."""
    statuses = client.namespace(spec).store(hashes, payloads(spec, hashes))
    here = (BlockStatus.OK, BlockStatus.PRESENT)
    return [
        (spec.name, each) for each, status in zip(hashes, statuses, strict=True) if status in here
    ]


class Load:
    """Threads that store and load until the agent dies or they are stopped; a context manager."""

    def __init__(
        self, address: str, specs: Sequence[NamespaceSpec], seed: int, *, threads: int, name: str
    ) -> None:
        self._address = address
        self._specs = specs
        self._name = name
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._stored: dict[Key, None] = {}
        self.wrong: set[Key] = set()
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(Random(f"{seed} {number}"), number))
            for number in range(threads)
        ]

    @property
    def stored(self) -> list[Key]:
        with self._lock:
            return list(self._stored)

    def _run(self, random: Random, number: int) -> None:
        try:
            with Client(self._address, timeout_seconds=_CALL_SECONDS) as client:
                for turn in range(1 << 30):
                    if self._stopped.is_set():
                        return
                    self._step(client, random, f"{self._name}/{number}/{turn}")
        except KvtierError:
            return  # the agent is dead
        except Exception as error:  # for the test's thread
            self.errors.append(repr(error))

    def _step(self, client: Client, random: Random, sequence: str) -> None:
        stored = self.stored
        if not stored or random.random() < 0.5:
            spec = random.choice(self._specs)
            keys = store(client, spec, hashes_of(sequence, random.randint(1, 12)))
            with self._lock:
                self._stored.update(dict.fromkeys(keys))
        else:
            keys = random.sample(stored, min(len(stored), 8))
            self.wrong |= read(client, self._specs, keys).wrong

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []


def flush(admin: AdminClient) -> None:
    admin.flush(Tier.DISK)


def go_on(seconds: float) -> None:
    """Lets a load go on for so long."""
    deadline = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > deadline, seconds + 1.0)
