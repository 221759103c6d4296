"""Two agents that share a Redis, and their workers."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from types import TracebackType

from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.testing.redis_servers import RedisServer
from kvtier.testing.slow_agent import SlowAgentProcess
from kvtier.testing.worker_process import WorkerProcess
from kvtier.v1 import cache_admin_pb2 as pb
from tests.faults.blocks import MIB
from tests.faults.waiting import wait_until
from tests.soak.worker import work

HOST_BYTES = 48 * MIB
_REPORT_SECONDS = 30.0
_GOOD_SECONDS = 60.0
#: Longer than any hold or session without shared memory lives, and what workers lease in passing.
#: What they lease for longer ends with them.
_FREE_SECONDS = 30.0
#: For each agent.
_WORKERS = (("red", "auto"), ("blue", "auto"), ("blue", "stream"))


class Crew:
    """The workers of one agent; a worker that has died is another one's place."""

    def __init__(self, agent: SlowAgentProcess, random: Random) -> None:
        self.seen: Counter[str] = Counter()
        self._agent = agent
        self._random = random
        self._workers: list[WorkerProcess] = []

    def hire(self) -> None:
        """Until all places are taken."""
        for tenant, transport in _WORKERS[len(self._workers) :]:
            seed = str(self._random.random())
            worker = WorkerProcess(work, self._agent.address, tenant, transport, seed)
            self._workers.append(worker)

    def any(self) -> WorkerProcess:
        return self._random.choice(self._workers)

    def replace(self, worker: WorkerProcess) -> None:
        """By one that does the same."""
        index = self._workers.index(worker)
        worker.close()
        tenant, transport = _WORKERS[index]
        seed = str(self._random.random())
        self._workers[index] = WorkerProcess(work, self._agent.address, tenant, transport, seed)

    def report(self) -> None:
        """Adds what all have seen since the last time to `seen`."""
        for worker in self._workers:
            self._ask(worker, "report")

    def _ask(self, worker: WorkerProcess, order: str) -> None:
        try:
            self.seen.update(worker.ask(order, _REPORT_SECONDS))
        except (RuntimeError, TimeoutError):
            self.seen["died"] += 1

    def disconnect(self) -> None:
        """They close their connections and live on; what they saw is in `seen`."""
        for worker in self._workers:
            self._ask(worker, "leave")

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers.clear()


class Deployment:
    """A context manager. The first agent is never ended, so that a leak of it is seen."""

    def __init__(self, directory: Path, random: Random) -> None:
        self.redis = RedisServer(maxmemory_bytes=128 * MIB)
        self.agents = [
            SlowAgentProcess(self._directory(directory, name), self._settings(directory, name))
            for name in ("lasting", "mortal")
        ]
        self.crews = [Crew(agent, random) for agent in self.agents]
        self._stack = ExitStack()

    @staticmethod
    def _directory(directory: Path, name: str) -> Path:
        path = directory / name
        path.mkdir(mode=0o700)
        return path

    def _settings(self, directory: Path, name: str) -> dict[str, object]:
        return {
            "tiers.host.capacity": HOST_BYTES,
            "tiers.host.memory_reserve": 0,
            "tiers.disk.paths": directory / name / "disk",
            "tiers.disk.capacity": 3 * HOST_BYTES,
            "tiers.disk.min_free": 0,
            "tiers.disk.io_timeout": 2.0,
            "tiers.cluster.url": self.redis.url,
            "leases.default_seconds": 2.0,
            "leases.max_seconds": 600.0,
            "streams.session_seconds": 5.0,
            "prefetch.read_ahead": 4,
        }

    @property
    def lasting(self) -> SlowAgentProcess:
        return self.agents[0]

    def seen(self) -> Counter[str]:
        """By all workers, since the beginning."""
        return sum((crew.seen for crew in self.crews), Counter())

    def until_good(self) -> None:
        """Until every tier of each agent is as it should be. AssertionError if that takes long."""
        for agent in self.agents:
            with AdminClient(agent.admin_address, timeout_seconds=10) as admin:
                wait_until(lambda admin=admin: _is_good(admin), _GOOD_SECONDS, 0.1)  # type: ignore[misc]

    def until_unleased(self) -> None:
        """Until nothing is leased to those who have gone, while their processes live: only their
        disconnecting ends what they keep. AssertionError if that takes long."""
        for agent in self.agents:
            with AdminClient(agent.admin_address, timeout_seconds=10) as admin:
                wait_until(lambda admin=admin: _is_unleased(admin), _FREE_SECONDS, 0.1)  # type: ignore[misc]

    def until_free(self) -> None:
        """Until nothing is promised to anybody; no worker is there. AssertionError if something
        stays promised to those who are gone, which says what is left."""
        for agent in self.agents:
            with AdminClient(agent.admin_address, timeout_seconds=10) as admin:
                try:
                    wait_until(lambda admin=admin: not _left(admin), _FREE_SECONDS, 0.1)  # type: ignore[misc]
                except AssertionError as error:
                    raise AssertionError(
                        f"{agent.directory.name}: {error}: {_left(admin)}"
                    ) from None

    def __enter__(self) -> Deployment:
        with ExitStack() as stack:
            stack.enter_context(self.redis)
            for agent in self.agents:
                stack.enter_context(agent)
            for crew in self.crews:
                stack.callback(crew.close)
                crew.hire()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError, AssertionError):
            for agent in self.agents:
                agent.heal()
                agent.resume()
        self._stack.close()


def _is_good(admin: AdminClient) -> bool:
    return all(each.state == pb.TierStats.ACTIVE for each in admin.get_stats().tiers)


def _is_unleased(admin: AdminClient) -> bool:
    return not admin.get_stats().lease_count


def _left(admin: AdminClient) -> dict[str, int]:
    """What is promised, and what waits to be written, whose slots are in use meanwhile."""
    stats = admin.get_stats()
    found = {f"{Tier(each.tier).name} pending": each.pending_bytes for each in stats.tiers}
    host = stats.tiers[0]
    found |= {"HOST leased": host.leased_bytes, "HOST quarantined": host.quarantined_bytes}
    found["leases"] = stats.lease_count
    return {name: size for name, size in found.items() if size}
