"""What befalls a deployment: each trouble ends within some seconds, and then all is well."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random

from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.errors import KvtierError
from kvtier.testing.faulty_io import Fault
from kvtier.testing.slow_agent import SlowAgentProcess
from tests.soak.deployment import HOST_BYTES, Deployment

_SHORT_SECONDS = (0.1, 2.0)
_RATES = [
    {Fault.READ_ERROR: 0.05},
    {Fault.WRITE_ERROR: 0.05},
    {Fault.SYNC_ERROR: 0.2},
    {Fault.BIT_FLIP: 0.2},
    {Fault.TORN_WRITE: 0.2},
    {Fault.SHORT_READ: 0.2, Fault.SHORT_WRITE: 0.2, Fault.INTERRUPTION: 0.2},
    {Fault.ALLOCATE_ERROR: 0.5, Fault.OPEN_ERROR: 0.1},
]


class Troubles:
    """Chooses them at random. What it does is over when `befall` returns."""

    def __init__(self, deployment: Deployment, random: Random) -> None:
        self.counts: Counter[str] = Counter()
        self._deployment = deployment
        self._random = random
        self._all: list[Callable[[], None]] = [
            self.kill_a_worker,
            self.kill_a_worker,
            self.stop_a_worker,
            self.pause_an_agent,
            self.kill_an_agent,
            self.end_an_agent,
            self.kill_redis,
            self.pause_redis,
            self.break_a_disk,
            self.break_a_disk,
            self.slow_a_disk,
            self.interfere,
            self.interfere,
        ]

    def befall(self) -> None:
        """One of them."""
        trouble = self._random.choice(self._all)
        self.counts[trouble.__name__] += 1
        trouble()

    def kill_a_worker(self) -> None:
        crew = self._random.choice(self._deployment.crews)
        worker = crew.any()
        worker.kill()
        crew.replace(worker)

    def stop_a_worker(self) -> None:
        """For longer than a lease may live, at times."""
        worker = self._random.choice(self._deployment.crews).any()
        worker.pause()
        self._wait(self._random.choice((1.0, 4.0)))
        worker.resume()

    def pause_an_agent(self) -> None:
        agent = self._agent()
        agent.pause()
        self._wait()
        agent.resume()

    def kill_an_agent(self) -> None:
        mortal = self._deployment.agents[1]
        mortal.kill()
        self._wait()
        mortal.start()

    def end_an_agent(self) -> None:
        mortal = self._deployment.agents[1]
        mortal.stop()
        self._wait()
        mortal.start()

    def kill_redis(self) -> None:
        self._deployment.redis.kill()
        self._wait()
        self._deployment.redis.start()

    def pause_redis(self) -> None:
        self._deployment.redis.pause()
        self._wait()
        self._deployment.redis.resume()

    def break_a_disk(self) -> None:
        agent = self._agent()
        agent.fail(self._random.choice(_RATES))
        self._wait()
        agent.heal()

    def slow_a_disk(self) -> None:
        agent = self._agent()
        agent.slow_down(latency_seconds=self._random.choice((0.01, 0.5, 3.0)))
        self._wait()
        agent.heal()

    def interfere(self) -> None:
        """As an operator does."""
        random, tenant = self._random, self._random.choice(("red", "blue"))
        name = f"{tenant}/{self._random.choice(('small', 'large'))}"
        with (
            suppress(KvtierError),
            AdminClient(self._agent().admin_address, timeout_seconds=10) as admin,
        ):
            random.choice(
                [
                    lambda: admin.evict_blocks(name),
                    lambda: admin.evict_blocks(name, tiers=[Tier.HOST]),
                    lambda: admin.invalidate(name),
                    lambda: admin.flush(Tier.DISK, timeout_seconds=5),
                    lambda: self._resize(admin),
                    lambda: self._drain(admin),
                    lambda: list(admin.scrub(Tier.DISK)),
                ]
            )()

    def _resize(self, admin: AdminClient) -> None:
        admin.resize_tier(Tier.HOST, HOST_BYTES // 2)
        self._wait()
        admin.resize_tier(Tier.HOST, HOST_BYTES)

    def _drain(self, admin: AdminClient) -> None:
        try:
            list(admin.drain(0.5))
        finally:
            admin.resume()

    def _agent(self) -> SlowAgentProcess:
        return self._random.choice(self._deployment.agents)

    def _wait(self, seconds: float | None = None) -> None:
        time.sleep(self._random.uniform(*_SHORT_SECONDS) if seconds is None else seconds)
