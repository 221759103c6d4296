"""A measurement in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def in_worker_process(measure: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """Runs `measure(**arguments)` in a fresh interpreter and returns its result.

    Raises RuntimeError if the process ends without one.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, measure, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError as error:
        raise RuntimeError("the worker process ended without a result") from error
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
        receiver.close()
    return result


def _send_result(sender: Any, measure: Callable[..., Any], arguments: dict[str, Any]) -> None:
    sender.send(measure(**arguments))
    sender.close()
