"""An event loop that is driven turn by turn, in a time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from kvtier.agent.moving.mover import Mover

P = ParamSpec("P")
T = TypeVar("T")

_MANY_TURNS = 3000


class SteppedLoop(asyncio.SelectorEventLoop):
    """Its timers follow a clock that the test moves; nothing in it waits for real time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._test_clock = clock
        super().__init__()

    def time(self) -> float:
        return self._test_clock()

    def turn(self) -> None:
        """Runs what is ready now, once."""
        self.call_soon(self.stop)
        self.run_forever()

    def complete(
        self, *work: Coroutine[Any, Any, Any], after_turn: Callable[[], None]
    ) -> list[Any]:
        """Runs coroutines side by side to their end; fails for what never ends."""
        tasks = [self.create_task(each) for each in work]
        for _ in range(_MANY_TURNS):
            if all(task.done() for task in tasks):
                return [task.result() for task in tasks]
            self.turn()
            after_turn()
        for task in tasks:
            task.cancel()
        self.turn()
        raise AssertionError(f"{[str(task) for task in tasks]} did not end in {_MANY_TURNS} turns")


class SteppedMover(Mover):
    """Runs calls on the loop, some turns after they were asked for: the same order every time.

    A thread's timing would make a failure of the state machine impossible to shrink.
    """

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.turns_before = 0
        self.turns_after = 0

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.queue_depth += 1
        try:
            for _ in range(self.turns_before):
                await asyncio.sleep(0)
            result = call(*args, **kwargs)
            for _ in range(self.turns_after):
                await asyncio.sleep(0)
            return result
        finally:
            self.queue_depth -= 1
