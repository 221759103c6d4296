"""A thread has a low priority only as long as it does what nobody waits for."""

from __future__ import annotations

import os
import threading

import pytest

from kvtier.agent.moving import thread_priority
from kvtier.agent.moving.thread_priority import at_low_priority


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

    thread_priority._is_reversible.cache_clear()
    monkeypatch.setattr(os, "setpriority", refuse)
    try:
        normal = _niceness()
        assert at_low_priority(_niceness) == normal
        assert _niceness() == normal
    finally:
        thread_priority._is_reversible.cache_clear()
