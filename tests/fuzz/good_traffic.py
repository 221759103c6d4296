"""A worker that stores and loads beside whatever is done to the agent, and judges every byte."""

from __future__ import annotations

import threading
from collections import Counter
from random import Random

import numpy as np

from kvtier import BlockStatus, Client
from kvtier.client.client import Transport
from kvtier.errors import KvtierError
from tests.faults.blocks import BLOCK_BYTES, Verdict, hashes_of, payloads, spec_of, verdict_of
from tests.faults.waiting import wait_until

_BLOCKS = 8
_SEQUENCES = 12


class GoodTraffic:
    """A thread of its own; a context manager that ends it.

    It uses shared memory or streams. `errors` counts KvtierErrors by their names; of anything else
    it ends, and leaving the context fails.
    """

    def __init__(self, address: str, name: str, transport: Transport = "auto") -> None:
        self.verdict = Verdict()
        self.errors: Counter[str] = Counter()
        self._spec = spec_of(name, BLOCK_BYTES)
        self._client = Client(address, timeout_seconds=10, transport=transport)
        self._random = Random(name)
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"good traffic {name}")

    def goes_on(self, deadline_seconds: float = 20.0, count: int = 3 * _BLOCKS) -> None:
        """Returns when so many further blocks were right. Raises AssertionError at the deadline."""
        goal = self.verdict.right + count
        wait_until(lambda: self.verdict.right >= goal or self._failure, deadline_seconds)

    def _run(self) -> None:
        try:
            while not self._ended.wait(0.002):
                self._step()
        except BaseException as error:
            self._failure = error

    def _step(self) -> None:
        sequence = f"{self._spec.name} {self._random.randrange(_SEQUENCES)}"
        hashes = hashes_of(sequence, _BLOCKS)
        namespace = self._client.namespace(self._spec)
        out = np.zeros((_BLOCKS, BLOCK_BYTES), np.uint8)
        try:
            namespace.lookup(hashes)
            statuses = namespace.load_into(hashes, out)
            self.verdict += verdict_of(self._spec, hashes, statuses, out)
            if set(statuses) != {BlockStatus.OK}:
                namespace.store(hashes, payloads(self._spec, hashes))
        except KvtierError as error:
            self.errors[type(error).__name__] += 1

    def __enter__(self) -> GoodTraffic:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()
        assert self._failure is None, self._failure
        assert self.verdict.wrong == 0
