"""A burst of four times the arena's size: what fits after eviction is stored."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from kvtier import BlockStatus
from kvtier.testing.worker_process import WorkerProcess
from tests.faults import scripts
from tests.faults.agents import running_agent
from tests.faults.blocks import BLOCK_BYTES, MIB, Verdict
from tests.faults.memory_sampler import MemorySampler
from tests.faults.repetitions import times

pytestmark = pytest.mark.faults

_WORKERS = 4
_BLOCKS = 64 * MIB // BLOCK_BYTES


@pytest.mark.parametrize("batch", [16, 128])
def test_every_store_of_a_burst_succeeds(batch: int) -> None:
    for _ in range(times(20) // 2):
        with running_agent("64MiB") as agent, ExitStack() as stack:
            sampler = stack.enter_context(MemorySampler(agent))
            workers = [
                stack.enter_context(
                    WorkerProcess(scripts.burst, agent.address, f"w{index}", _BLOCKS, batch)
                )
                for index in range(_WORKERS)
            ]
            assert [each.hear() for each in workers] == ["ready"] * _WORKERS
            for worker in workers:
                worker.say("go")
            answers = [each.hear() for each in workers]
            for answer in answers:
                assert answer["counts"][BlockStatus.OK] == _BLOCKS, answer
            assert max(answer["seconds"] for answer in answers) < 3
            verdicts = [Verdict(**each.ask("judge")) for each in workers]
            assert sum(each.wrong for each in verdicts) == 0
            assert sum(each.right for each in verdicts) > _BLOCKS // 2
        assert sampler.highest_bytes <= 64 * MIB
