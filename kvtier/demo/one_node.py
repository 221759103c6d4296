"""The story of one node: an agent, three workers, a restart, one more worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvtier.demo.agent import make_agent, restart, stats_of
from kvtier.demo.exchange import Task
from kvtier.demo.progress import Progress
from kvtier.demo.report import Account, tier_line
from kvtier.demo.role import Role

_FIRST = Role("worker 1", "reads a text and stores its KV", "")
_SECOND = Role("worker 2", "is asked the same and finds it", "HOST")
_THIRD = Role("worker 3", "goes on with a longer conversation", "HOST")
_THIRD_ON_DEVICE = Role("worker 3", "goes on with a longer conversation, from the device", "GPU")
_FOURTH = Role("worker 4", "is asked as worker 2 was and finds it", "DISK")


class OneNode:
    """HOST is shared by workers, DISK outlives a restart. With a `device`, by torch's name, what is
    loaded from HOST is on it from then on."""

    def __init__(self, device: str = "") -> None:
        self._device = device

    def play(self, task: Task, directory: Path, progress: Progress) -> Account:
        progress.step("starting an agent")
        task, settings = replace(task, device=self._device), {}
        if self._device:
            settings = {"tiers.gpu.devices": f"[{{device: {self._device}, capacity: 1GiB}}]"}
        with make_agent(directory, settings) as agent:
            first = _FIRST.play(task, agent, progress)
            second = _SECOND.play(task, agent, progress)
            on_device = _THIRD_ON_DEVICE if self._device else _THIRD
            third = on_device.play(task, agent, progress, first.outcome.answer)
            restart(agent, progress)
            fourth = _FOURTH.play(task, agent, progress)
            return Account(
                [first, second, third, fourth],
                [
                    "Since its second start the agent has counted:",
                    *(tier_line(tier) for tier in stats_of(agent).tiers),
                ],
            )
