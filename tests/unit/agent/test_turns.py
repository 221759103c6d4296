"""Turns of the event loop: one slice of data in each, and lookups between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from kvtier.agent.turns import Line, background_line, data_line, data_slices
from kvtier.testing.late_accelerator import LateAccelerator
from tests.faults.blocks import hashes_of
from tests.gpu.node import running_node, worker


def _run_beside(calls: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Slices of data by the loop's turn and by call; each call has ten of them."""
    turns: list[int] = []
    done: list[tuple[int, int]] = []

    async def count(of: list[asyncio.Task[None]]) -> None:
        while not all(task.done() for task in of):
            turns.append(len(done))
            await asyncio.sleep(0)

    async def work(call: int) -> None:
        await data_line().begin()
        async for part in data_slices(10, 1):
            done.append((call, part.start))

    async def run() -> None:
        tasks = [asyncio.create_task(work(call)) for call in range(calls)]
        await count(tasks)

    asyncio.run(run())
    return turns, done


def test_each_turn_has_one_slice_however_many_calls_there_are() -> None:
    turns, done = _run_beside(20)
    assert len(done) == 200
    assert max(b - a for a, b in pairwise(turns)) == 1


def test_calls_take_turns() -> None:
    _, done = _run_beside(3)
    # The first one began at once, and waits behind nobody.
    assert [call for call, _ in done[1:10]] == [0, 1, 2] * 3
    for call in range(3):
        assert [part for each, part in done if each == call] == list(range(10))


def test_what_nobody_waits_for_has_turns_beside_data() -> None:
    async def run() -> list[tuple[int, str]]:
        turn, done = 0, []

        async def work(line: Line, name: str) -> None:
            for _ in range(2):
                await line.begin()
                done.append((turn, name))

        kinds = (data_line(), "data"), (background_line(), "background")
        working = asyncio.gather(*(work(*kind) for _ in range(3) for kind in kinds))
        while not working.done():
            turn += 1
            await asyncio.sleep(0)
        return done

    done = asyncio.run(run())
    assert len(done) == len(set(done)) == 12
    assert len({turn for turn, _ in done}) < 12


def test_who_gives_up_waiting_holds_nobody_up() -> None:
    async def run() -> list[str]:
        line, ended = data_line(), []
        await line.begin()
        waiting = [asyncio.create_task(line.turn()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[2].cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        ended += ["cancelled" if each is not None else "had it" for each in results]
        await asyncio.wait_for(line.turn(), 10)
        return ended

    assert asyncio.run(run()) == ["cancelled", "had it", "cancelled"]


def _turns_of_data(calls: int, give_way: Callable[[int], bool]) -> list[int]:
    """In which turns of the loop a slice of data had its turn, of `calls` that have five each;
    where `give_way` says so, something has come in that turn."""
    had: list[int] = []

    async def run() -> None:
        turn = 0

        async def work() -> None:
            for _ in range(5):
                await data_line().turn()
                had.append(turn)

        working = asyncio.gather(*(work() for _ in range(calls)))
        while not working.done():
            turn += 1
            if give_way(turn):
                data_line().give_way()
            await asyncio.sleep(0)
        await working

    asyncio.run(asyncio.wait_for(run(), 10))
    return had


@pytest.mark.parametrize("calls", [1, 2, 8])
def test_what_has_just_come_has_a_turn_to_itself(calls: int) -> None:
    before = _turns_of_data(calls, lambda turn: False)
    assert before == list(range(2, 2 + 5 * calls))
    assert _turns_of_data(calls, lambda turn: turn == 4) == [*range(2, 4), *range(5, 3 + 5 * calls)]


@pytest.mark.parametrize("calls", [1, 2, 8])
def test_data_has_every_other_turn_whatever_comes(calls: int) -> None:
    had = _turns_of_data(calls, lambda turn: True)
    assert len(had) == len(set(had)) == 5 * calls
    assert max(b - a for a, b in pairwise(had)) <= 3


def test_data_gives_way_to_each_call_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Line] = []
    with running_node({"cpu": LateAccelerator()}) as node, worker(node) as namespace:
        namespace.lookup(hashes_of("a", 2))  # it attaches
        monkeypatch.setattr(Line, "give_way", lambda line: given.append(line))
        for count in (1, 2, 3):
            namespace.lookup(hashes_of("a", 2))
            assert len(given) == count
    assert len(set(map(id, given))) == 1
