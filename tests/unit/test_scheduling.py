"""A thread has a low priority only as long as it does what nobody waits for; the event loop has a
high one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from kvtier import scheduling
from kvtier.scheduling import at_low_priority, precede_other_threads

T = TypeVar("T")


def _niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_low_during_the_call() -> None:
    normal = _niceness()
    assert at_low_priority(_niceness) == normal + 10
    assert _niceness() == normal


def test_normal_again_after_a_failure() -> None:
    normal = _niceness()
    with pytest.raises(ZeroDivisionError):
        at_low_priority(lambda: 1 // 0)
    assert _niceness() == normal


def test_never_low_where_it_could_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process without CAP_SYS_NICE."""
    set_priority = os.setpriority

    def refuse(which: int, who: int, priority: int) -> None:
        if priority < os.getpriority(which, who):
            raise PermissionError(13, "Permission denied")
        set_priority(which, who, priority)

    scheduling._is_reversible.cache_clear()
    monkeypatch.setattr(os, "setpriority", refuse)
    try:
        normal = _niceness()
        assert at_low_priority(_niceness) == normal
        assert _niceness() == normal
    finally:
        scheduling._is_reversible.cache_clear()


def _new_thread(call: Callable[[], T]) -> T:
    answers: list[T] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    thread.join()
    return answers[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the permission")
def test_precedes_those_that_it_makes_too() -> None:
    def precede() -> tuple[bool, int, int]:
        return precede_other_threads(0.0002), _niceness(), _new_thread(_niceness)

    assert _new_thread(precede) == (True, -10, 0)


def test_precedes_nobody_without_permission() -> None:
    """In a process of its own: what is given up here does not come back."""
    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, resource\n"
            "from kvtier.scheduling import precede_other_threads\n"
            "resource.setrlimit(resource.RLIMIT_NICE, (0, 0))\n"
            "if os.geteuid() == 0:\n"
            "    os.setuid(65534)\n"
            "print(precede_other_threads(0.0002), os.getpriority(os.PRIO_PROCESS, 0))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == ["False", "0"]
