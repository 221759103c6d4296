"""The ways to an agent, behind one set of verbs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvtier import AsyncClient, Client, NamespaceSpec

NAMES = ("memory", "stream", "async")


class Verbs:
    """The verbs of one namespace, blocking, whatever the client's are."""

    def __init__(self, namespace: Any, runner: asyncio.Runner | None) -> None:
        self._namespace = namespace
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._namespace, name)
        runner = self._runner
        if runner is None:
            return verb
        return lambda *args, **named: runner.run(verb(*args, **named))


class Worker:
    """A client of one transport."""

    def __init__(self, client: Client | AsyncClient, runner: asyncio.Runner | None) -> None:
        self.client = client
        self._runner = runner

    def namespace(self, spec: NamespaceSpec) -> Verbs:
        return Verbs(self.client.namespace(spec), self._runner)


@contextmanager
def worker(name: str, address: str, timeout_seconds: float = 5.0) -> Iterator[Worker]:
    """A client by one of `NAMES`."""
    if name != "async":
        with Client(address, timeout_seconds=timeout_seconds, transport=name) as client:  # type: ignore[arg-type]
            yield Worker(client, None)
        return
    with asyncio.Runner() as runner:
        asynchronous = AsyncClient(address, timeout_seconds=timeout_seconds)
        try:
            yield Worker(asynchronous, runner)
        finally:
            runner.run(asynchronous.close())
