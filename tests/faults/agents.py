"""What the tests ask of a real agent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvtier.client.admin import AdminClient
from kvtier.testing import AgentProcess
from kvtier.v1 import cache_admin_pb2 as pb
from tests.faults.waiting import wait_until


@contextmanager
def running_agent(capacity: str, **settings: object) -> Iterator[AgentProcess]:
    """An agent; settings are named with __ for the dot."""
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    keys = {"tiers.host.capacity": capacity, "tiers.host.memory_reserve": 0, **keys}
    with AgentProcess(settings=keys) as agent:
        yield agent


def host_stats(admin: AdminClient) -> pb.TierStats:
    return admin.get_stats().tiers[0]


def promised_bytes(admin: AdminClient) -> int:
    """Leased, held, reserved or in quarantine."""
    stats = host_stats(admin)
    return stats.leased_bytes + stats.quarantined_bytes


def wait_until_free(admin: AdminClient, deadline_seconds: float) -> None:
    """Until no slot is promised to anybody."""
    wait_until(lambda: promised_bytes(admin) == 0, deadline_seconds, 0.001)


def descriptor_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def open_files(pid: int) -> list[str]:
    """What its descriptors are of; ends with ` (deleted)` if that has no name any more."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(each))
    return found


def memfds(pid: int) -> dict[str, int]:
    """Allocated bytes by descriptor, as the kernel counts them."""
    found = {}
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(each).startswith("/memfd:"):
                found[each.name] = each.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def thread_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))
