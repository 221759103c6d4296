"""A worker that is killed gives everything back at once, and nothing half-done is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kvtier import Client, Match, Namespace
from kvtier.client.admin import AdminClient
from kvtier.testing import AgentProcess
from kvtier.testing.worker_process import WorkerProcess
from tests.faults import scripts
from tests.faults.agents import host_stats, promised_bytes, running_agent, wait_until_free
from tests.faults.blocks import BLOCK_BYTES, Verdict, hashes_of, judge, spec_of, store
from tests.faults.repetitions import times

pytestmark = pytest.mark.faults

_BACK_SECONDS = 0.1
_COUNT = 8
_STEPS = ["reserve", "write", "commit", "lookup", "load", "loaded"]


@dataclass(frozen=True)
class Scene:
    """An agent, and what looks at it."""

    agent: AgentProcess
    admin: AdminClient
    client: Client

    @property
    def namespace(self) -> Namespace:
        return self.client.namespace(spec_of())


@pytest.fixture
def scene() -> Iterator[Scene]:
    with (
        running_agent("64MiB") as agent,
        AdminClient(agent.admin_address) as admin,
        Client(agent.address, timeout_seconds=5) as client,
    ):
        yield Scene(agent, admin, client)


def test_a_killed_worker_gives_leases_holds_and_reservations_back(scene: Scene) -> None:
    for sequence in ("held", "leased"):
        assert store(scene.namespace, sequence, _COUNT) == _COUNT
    for turn in range(times(100)):
        uncommitted = f"uncommitted/{turn}"
        with WorkerProcess(
            scripts.hold_everything, scene.agent.address, uncommitted, _COUNT
        ) as worker:
            assert worker.hear() == [_COUNT, _COUNT]
            assert promised_bytes(scene.admin) == 3 * _COUNT * BLOCK_BYTES
            worker.kill()
            wait_until_free(scene.admin, _BACK_SECONDS)
        look = scene.namespace.lookup(hashes_of(uncommitted, _COUNT), match=Match.PRESENCE)
        assert not any(look.present)
        assert host_stats(scene.admin).block_count == 2 * _COUNT
    assert judge(scene.namespace, hashes_of("held", _COUNT)) == Verdict(right=_COUNT)


def test_what_a_killed_worker_left_unwritten_another_stores(scene: Scene) -> None:
    with WorkerProcess(scripts.hold_everything, scene.agent.address, "shared", _COUNT) as worker:
        worker.hear()
        assert store(scene.namespace, "shared", _COUNT) == _COUNT
        worker.kill()
        wait_until_free(scene.admin, _BACK_SECONDS)
    assert judge(scene.namespace, hashes_of("shared", _COUNT)) == Verdict(right=_COUNT)


@pytest.mark.parametrize("step", _STEPS)
def test_a_worker_killed_in_the_middle_of_a_large_batch_gives_everything_back(
    scene: Scene, step: str
) -> None:
    count, block_bytes = 1500, 4096
    namespace = scene.client.namespace(spec_of("large", block_bytes))
    for turn in range(times(60) // 3):
        with WorkerProcess(
            scripts.name_each_step, scene.agent.address, "large", count, block_bytes
        ) as worker:
            for _ in range(1 + turn % 3):
                while worker.hear() != step:
                    continue
            worker.kill()
            wait_until_free(scene.admin, _BACK_SECONDS)
    for sequence in range(4):
        assert judge(namespace, hashes_of(f"large/{sequence}", count)).wrong == 0
