"""A node's agent, with tiers HOST and DISK; DISK outlives a run of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from kvtier.client.admin import AdminClient
from kvtier.demo.progress import Progress
from kvtier.testing import AgentProcess
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import Stats, TierStats

#: Both tiers occupy of it only what blocks need.
_CAPACITY = "4GiB"
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.05


def make_agent(directory: Path, settings: Mapping[str, object] | None = None) -> AgentProcess:
    """All that it keeps is in `directory`, which is made if it is not there.

    `settings` are those of further tiers.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    own = {
        "tiers.host.capacity": _CAPACITY,
        "tiers.disk.paths": directory / "disk",
        "tiers.disk.capacity": _CAPACITY,
        # What is written is gone when the demo ends: a device that is nearly full will do.
        "tiers.disk.min_free": 0,
    }
    return AgentProcess(directory, own | dict(settings or {}))


def stats_of(agent: AgentProcess) -> Stats:
    """What it counts since its last start."""
    with AdminClient(agent.admin_address) as admin:
        return admin.get_stats()


def tier_of(agent: AgentProcess, tier: block_pb2.Tier) -> TierStats:
    """One of its tiers."""
    [found] = [each for each in stats_of(agent).tiers if each.tier == tier]
    return found


def restart(agent: AgentProcess, progress: Progress, name: str = "the agent") -> None:
    """Stops it cleanly and starts it again; returns when it has found what is on DISK."""
    progress.step(f"stopping {name}")
    with AdminClient(agent.admin_address) as admin:
        admin.flush()  # a stop does this too, but gives it some seconds only
    if status := agent.stop():
        raise RuntimeError(f"{name} ended with status {status}; its log says:\n{agent.log}")
    progress.step(f"starting {name} again")
    agent.start()
    with AdminClient(agent.admin_address) as admin:
        if not comes_true(admin.is_ready, _READY_SECONDS):
            raise RuntimeError(f"{name} does not get ready; its log says:\n{agent.log}")
    blocks = tier_of(agent, block_pb2.TIER_DISK).block_count
    progress.say(f"{name} has been stopped and started again: {blocks:,} blocks on DISK")


def comes_true(condition: Callable[[], bool], within_seconds: float) -> bool:
    """Whether it does; asks again and again."""
    deadline = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
