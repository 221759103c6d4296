"""The demo's agent, with tiers HOST and DISK; DISK outlives a run of it."""

from __future__ import annotations

import time
from pathlib import Path

from kvtier.client.admin import AdminClient
from kvtier.demo.progress import Progress
from kvtier.testing import AgentProcess
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import Stats

#: Both tiers occupy of it only what blocks need.
_CAPACITY = "4GiB"
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.05


def make_agent(directory: Path) -> AgentProcess:
    """All that it keeps is in `directory`."""
    settings = {
        "tiers.host.capacity": _CAPACITY,
        "tiers.disk.paths": directory / "disk",
        "tiers.disk.capacity": _CAPACITY,
        # What is written is gone when the demo ends: a device that is nearly full will do.
        "tiers.disk.min_free": 0,
    }
    return AgentProcess(directory, settings)


def stats_of(agent: AgentProcess) -> Stats:
    """What it counts since its last start."""
    with AdminClient(agent.admin_address) as admin:
        return admin.get_stats()


def restart(agent: AgentProcess, progress: Progress) -> None:
    """Stops it cleanly and starts it again; returns when it has found what is on DISK."""
    progress.step("stopping the agent")
    with AdminClient(agent.admin_address) as admin:
        admin.flush()  # a stop does this too, but gives it some seconds only
    if status := agent.stop():
        raise RuntimeError(f"the agent ended with status {status}; its log says:\n{agent.log}")
    progress.step("starting the agent again")
    agent.start()
    _wait_until_ready(agent)
    [disk] = [tier for tier in stats_of(agent).tiers if tier.tier == block_pb2.TIER_DISK]
    progress.say(
        f"the agent has been stopped and started again: {disk.block_count:,} blocks on DISK"
    )


def _wait_until_ready(agent: AgentProcess) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    with AdminClient(agent.admin_address) as admin:
        while not admin.is_ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the agent does not get ready; its log says:\n{agent.log}")
            time.sleep(_POLL_SECONDS)
