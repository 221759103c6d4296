"""Nothing that goes wrong here may end the engine's step."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("vllm.kvtier")


def guarded(fallback: T) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a function log what it raises, and return `fallback` then."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except Exception:
                log.exception("kvtier: %s failed; the engine goes on", function.__name__)
                return fallback

        return call

    return decorate
