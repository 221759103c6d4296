"""A worker that stands still past its lease neither reads foreign bytes nor touches a block."""

from __future__ import annotations

import pytest

from kvtier import BlockStatus, Client, Match, Namespace
from kvtier.client.admin import AdminClient
from kvtier.testing.worker_process import WorkerProcess
from tests.faults import scripts
from tests.faults.agents import host_stats, running_agent, wait_until_free
from tests.faults.blocks import BLOCK_BYTES, Verdict, hashes_of, judge, spec_of, store
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults

_CAPACITY, _ARENA_BLOCKS = "8MiB", 128
_COUNT = 32
_TTL_SECONDS = 0.1


def _fill(namespace: Namespace, sequence: str) -> list[list[bytes]]:
    """Stores twice the arena, in batches; their keys."""
    batches = [hashes_of(f"{sequence}/{index}", 16) for index in range(_ARENA_BLOCKS * 2 // 16)]
    for index in range(len(batches)):
        assert store(namespace, f"{sequence}/{index}", 16) == 16
    return batches


def _judge_all(namespace: Namespace, batches: list[list[bytes]]) -> Verdict:
    return sum((judge(namespace, batch) for batch in batches), Verdict())


def _other(client: Client, turn: int) -> Namespace:
    """Every second time another block size, so that extents are retired."""
    return client.namespace(spec_of("other", 16 << 10) if turn % 2 else spec_of())


def test_a_load_that_stood_still_accepts_nothing_foreign() -> None:
    total, stopped = Verdict(), 0
    with (
        running_agent(_CAPACITY, tiers__host__policy="lru") as agent,
        AdminClient(agent.admin_address) as admin,
        Client(agent.address, timeout_seconds=5) as client,
    ):
        for turn in range(times(30)):
            assert store(client.namespace(spec_of()), "read", _COUNT) == _COUNT
            with WorkerProcess(
                scripts.load_slowly, agent.address, "read", _COUNT, _TTL_SECONDS
            ) as worker:
                assert worker.hear() == "copying"
                worker.pause()
                wait_until_free(admin, _TTL_SECONDS + 2)
                _fill(_other(client, turn), f"fill/{turn}")
                worker.resume()
                answer = worker.hear()
            stopped += 0 < answer.pop("stood_still_at") < 1
            total += Verdict(**answer)
    assert total.wrong == 0
    assert total.expired > 0
    assert stopped > times(30) // 2, "hardly ever stopped in the middle of the copy"


def test_a_store_that_stood_still_touches_no_other_block() -> None:
    with (
        running_agent(_CAPACITY, tiers__host__policy="lru") as agent,
        AdminClient(agent.admin_address) as admin,
        Client(agent.address, timeout_seconds=5) as client,
    ):
        stood_still = sum(
            _store_and_stand_still(agent.address, admin, client, turn) for turn in range(times(30))
        )
    assert stood_still > 0, "never stopped in the middle of the copy"


def _store_and_stand_still(address: str, admin: AdminClient, client: Client, turn: int) -> bool:
    """Whether the worker was stopped in the middle of its copy, and went on."""
    namespace, sequence = client.namespace(spec_of()), f"late/{turn}"
    others = client.namespace(spec_of("other", 16 << 10)) if turn % 2 else namespace
    with WorkerProcess(scripts.store_slowly, address, sequence, _COUNT, _TTL_SECONDS) as worker:
        assert worker.hear() == _COUNT
        worker.pause()
        late_bytes = _COUNT * BLOCK_BYTES
        wait_until(lambda: host_stats(admin).quarantined_bytes == late_bytes, _TTL_SECONDS + 2)
        batches = _fill(others, f"fill/{turn}")
        assert _judge_all(others, batches).wrong == 0
        if turn % 3 == 2:  # it never wakes up again
            worker.kill()
            wait_until(lambda: host_stats(admin).quarantined_bytes == 0, 0.1)
            return False
        worker.resume()
        answer = worker.hear()
        assert set(answer["statuses"]) == {BlockStatus.EXPIRED}
        verdict = _judge_all(others, batches)
        assert verdict.wrong == 0
        assert verdict.right > 0
        look = namespace.lookup(hashes_of(sequence, _COUNT), match=Match.PRESENCE)
        assert not any(look.present)
        # What expired is given back with the refused commit.
        wait_until(lambda: host_stats(admin).quarantined_bytes == 0, 1)
    return bool(answer["stood_still_at"])
