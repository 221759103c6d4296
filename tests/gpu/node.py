"""A whole agent in this process, with devices of the test's choosing, and its workers."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from kvtier import Client, Namespace
from kvtier.agent.tiers.device import Device
from kvtier.client.admin import AdminClient
from kvtier.config import load_config
from kvtier.core.block import Tier
from kvtier.daemon.agent import Agent
from kvtier.daemon.socket_directory import SocketDirectory
from kvtier.sockets import ADMIN_SOCKET, WORKER_SOCKET
from kvtier.tiers.device import Accelerator
from kvtier.v1.cache_admin_pb2 import TierStats
from tests.faults.blocks import BLOCK_BYTES, Verdict, hashes_of, spec_of, verdict_of
from tests.faults.waiting import wait_until

T = TypeVar("T")

_DEADLINE_SECONDS = 20.0


class GpuNode:
    """An agent on a loop of its own thread. `run` does something there."""

    def __init__(self, directory: Path, agent: Agent, loop: asyncio.AbstractEventLoop) -> None:
        self.agent = agent
        self.address = f"unix:{directory / WORKER_SOCKET}"
        self.admin_address = f"unix:{directory / ADMIN_SOCKET}"
        self._loop = loop

    def run(self, call: Callable[[], T]) -> T:
        """The result of a call on the agent's loop."""

        async def work() -> T:
            return call()

        return self.do(work())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_DEADLINE_SECONDS)

    @property
    def device(self) -> Device:
        return self.agent.gpu.devices[0]

    def stats(self, tier: Tier = Tier.GPU) -> TierStats:
        with AdminClient(self.admin_address) as admin:
            return next(each for each in admin.get_stats().tiers if int(each.tier) == tier)

    def settle(self) -> None:
        """Returns when nothing is on its way to a device any more."""

        def is_idle() -> bool:
            return self.run(lambda: not any(each._tasks for each in self.agent.gpu.devices))

        wait_until(is_idle, _DEADLINE_SECONDS)

    def check(self) -> None:
        """What holds at every moment."""

        def audit() -> None:
            tiers = [self.agent.host, *self.agent.gpu.tiers]
            for tier in tiers:
                tier.check_integrity()
            if not len(self.agent.leases):
                assert not any(c.referenced_slots for tier in tiers for c in tier.classes)
            for namespace in self.agent.namespaces:
                for copies in namespace.devices:
                    for host, size_class in zip(namespace.groups, copies, strict=True):
                        residency = size_class.residency
                        for row in range(residency.row_count):
                            if residency.slot[row] >= 0:
                                assert host.residency.find(*residency.describe(row)) >= 0

        self.run(audit)


@contextmanager
def running_node(
    accelerators: Mapping[str, Accelerator],
    *,
    device_capacity: str = "16MiB",
    **settings: object,
) -> Iterator[GpuNode]:
    """Devices by the name that the configuration gives them; settings have __ for the dot."""
    entries = [f"{{device: {name}, capacity: {device_capacity}}}" for name in accelerators]
    values: dict[str, object] = {
        "tiers.host.capacity": "64MiB",
        "tiers.host.memory_reserve": 0,
        "metrics.address": "null",
        "tiers.gpu.policy": "lru",
        "tiers.gpu.devices": f"[{', '.join(entries)}]",
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    with tempfile.TemporaryDirectory(prefix="kvtier-") as name:
        values["socket_dir"] = name
        config = load_config(None, {}, [f"{k}={v}" for k, v in values.items()]).config
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="gpu-node")
        thread.start()
        directory = SocketDirectory(config.socket_dir, config.socket_group)

        async def start() -> Agent:
            agent = Agent(config, open_accelerator=lambda each: accelerators[each])
            await agent.start(directory)
            return agent

        try:
            agent = asyncio.run_coroutine_threadsafe(start(), loop).result(_DEADLINE_SECONDS)
            node = GpuNode(Path(name), agent, loop)
            try:
                yield node
                node.settle()
                node.check()
            finally:
                node.do(agent.stop())
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            directory.close()


@contextmanager
def worker(node: GpuNode, name: str = "model", device: Any = "cpu") -> Iterator[Namespace]:
    """A client on a device, and its namespace."""
    with Client(node.address, device=device, transport="memory", timeout_seconds=10.0) as client:
        yield client.namespace(spec_of(name))


def load(namespace: Namespace, hashes: list[bytes], device: Any = "cpu") -> Verdict:
    """Loads into one tensor on a device and judges every byte of what is OK."""
    out = torch.zeros((len(hashes), BLOCK_BYTES), dtype=torch.uint8, device=device)
    statuses = namespace.load_into(hashes, out)
    return verdict_of(namespace.spec, hashes, statuses, out.cpu().numpy())


__all__ = ["GpuNode", "hashes_of", "load", "running_node", "worker"]
