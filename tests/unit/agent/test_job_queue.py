"""`agent.moving.job_queue`: the order of calls, and that none waits for ever."""

from __future__ import annotations

import threading
from random import Random

import pytest

from kvtier.agent.moving.job_queue import Job, JobQueue, Kind
from tests.unit.agent.disk_agent import on_loop

READ, OTHER, PREFETCH, WRITE = Kind


def put(queue: JobQueue, *kinds: Kind) -> list[Job]:
    jobs = [Job(lambda: None, 0, kind) for kind in kinds]
    for job in jobs:
        queue.put(job)
    return jobs


def taken(queue: JobQueue, count: int) -> list[Job | None]:
    return [queue.get() for _ in range(count)]


@on_loop
async def test_loads_go_before_prefetches_and_those_before_writes() -> None:
    queue = JobQueue()
    jobs = put(queue, WRITE, PREFETCH, OTHER, READ, WRITE, PREFETCH, OTHER, READ)
    assert taken(queue, 8) == [jobs[index] for index in (3, 7, 2, 6, 1, 5, 0, 4)]


@pytest.mark.parametrize("older", [0, 1, 5])
@on_loop
async def test_a_write_behind_loads_without_end_has_its_turn(older: int) -> None:
    queue = JobQueue()
    put(queue, *[WRITE] * older)
    [write] = put(queue, WRITE)
    overtaken = 0
    while True:
        put(queue, READ)
        job = queue.get()
        if job is write:
            break
        overtaken += 1
        assert overtaken < 16 * (older + 1)


@on_loop
async def test_a_job_of_another_kind_goes_behind_those_of_that_kind() -> None:
    queue = JobQueue()
    first, second, read = put(queue, PREFETCH, PREFETCH, READ)
    queue.change(second, READ)
    assert second.kind is READ
    assert taken(queue, 3) == [read, second, first]
    queue.change(first, READ)
    assert first.kind is READ
    queue.close()
    assert queue.get() is None, "what has been taken does not come again"


@on_loop
async def test_what_is_withdrawn_is_not_handed_out() -> None:
    queue = JobQueue()
    first, second = put(queue, PREFETCH, PREFETCH)
    assert queue.withdraw(first)
    assert not queue.withdraw(first)
    assert queue.get() is second
    assert not queue.withdraw(second)


@on_loop
async def test_a_closed_queue_hands_out_what_waits_and_then_nothing() -> None:
    queue = JobQueue()
    [job] = put(queue, WRITE)
    seen: list[Job | None] = []
    threads = [threading.Thread(target=lambda: seen.append(queue.get())) for _ in range(3)]
    for thread in threads:
        thread.start()
    queue.close()
    for thread in threads:
        thread.join(10)
    assert sorted(seen, key=lambda each: each is None) == [job, None, None]


@on_loop
async def test_threads_get_each_job_once() -> None:
    queue, random = JobQueue(), Random(1)
    seen: list[Job] = []

    def work() -> None:
        while (job := queue.get()) is not None:
            seen.append(job)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    withdrawn = []
    jobs = []
    for _ in range(500):
        [job] = put(queue, random.choice([*Kind]))
        jobs.append(job)
        chosen = random.choice(jobs)
        if random.random() < 0.2 and queue.withdraw(chosen):
            withdrawn.append(chosen)
        elif chosen.kind is PREFETCH:
            queue.change(chosen, READ)
    queue.close()
    for thread in threads:
        thread.join(10)
    assert len(seen) + len(withdrawn) == 500
    assert set(seen) | set(withdrawn) == set(jobs)
