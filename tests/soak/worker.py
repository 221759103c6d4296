"""What the workers of a soak do: everything that workers can, for ever."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from random import Random

import numpy as np

from kvtier import BlockStatus, Client, Namespace, NamespaceSpec
from kvtier.client.client import Transport
from kvtier.core.block import Match
from kvtier.errors import InternalError, KvtierError
from kvtier.testing.worker_process import Pipe
from tests.faults.blocks import KIB, Verdict, hashes_of, payloads, spec_of, verdict_of

_SEQUENCES = 60
_LONGEST = 24
_PAUSE_SECONDS = 0.02
_CALL_SECONDS = 3.0
_KEPT_SHARE = 0.02
#: More than a round and its rest last.
_KEPT_SECONDS = 600.0
_NAMESPACES = (("small", 16 * KIB), ("large", 256 * KIB))
_NOTHING = np.empty(0, np.uint8)


def work(pipe: Pipe, address: str, tenant: str, transport: Transport, seed: str) -> None:
    """Tells what it saw since the last time whenever it hears something; at "leave" it
    closes its client, and lives on.

    Two tenants ask for the same keys: each has bytes of its own for them.
    """
    logging.getLogger("kvtier").setLevel(logging.ERROR)  # agents come and go here
    worker = _Worker(Random(seed), [spec_of(n, s, tenant=tenant) for n, s in _NAMESPACES])
    with Client(address, timeout_seconds=_CALL_SECONDS, transport=transport) as client:
        while True:
            worker.step(client)
            time.sleep(_PAUSE_SECONDS)
            if not pipe.is_quiet():
                if pipe.hear() == "leave":
                    break
                pipe.say(worker.report())
    pipe.say(worker.report())
    with suppress(EOFError):
        pipe.hear()


class _Worker:
    """One worker, and what it has seen."""

    def __init__(self, random: Random, specs: list[NamespaceSpec]) -> None:
        self._random = random
        self._specs = specs
        self._verdict = Verdict()
        self._counts: Counter[str] = Counter()
        self._steps = [
            *(self._load, self._load, self._load, self._store),
            *(self._view, self._abandon, self._forget, self._keep, self._touch),
        ]

    def report(self) -> dict[str, int]:
        """Since the last one."""
        told = {"right": self._verdict.right, "wrong": self._verdict.wrong, **self._counts}
        self._verdict = Verdict()
        self._counts.clear()
        return told

    def step(self, client: Client) -> None:
        spec = self._random.choice(self._specs)
        hashes = hashes_of(
            f"{self._random.randrange(_SEQUENCES)}", self._random.randint(1, _LONGEST)
        )
        try:
            self._random.choice(self._steps)(client.namespace(spec), hashes)
        except InternalError:
            self._counts["bugs"] += 1
        except KvtierError as error:
            unlisted = f": {error}" if type(error) is KvtierError else ""
            self._counts[type(error).__name__ + unlisted] += 1

    def _load(self, namespace: Namespace, hashes: list[bytes]) -> None:
        found = namespace.lookup(
            hashes,
            hold_seconds=self._random.choice((0.0, 1.0)),
            prefetch=self._random.random() < 0.3,
        )
        out = np.zeros((len(hashes), namespace.spec.block_bytes[0]), np.uint8)
        statuses = namespace.load_into(hashes, out, hold_id=found.hold_id)
        self._verdict += verdict_of(namespace.spec, hashes, statuses, out)
        if set(statuses) != {BlockStatus.OK}:
            self._store(namespace, hashes)

    def _store(self, namespace: Namespace, hashes: list[bytes]) -> None:
        statuses = namespace.store(hashes, payloads(namespace.spec, hashes))
        self._counts["stored"] += statuses.count(BlockStatus.OK)

    def _view(self, namespace: Namespace, hashes: list[bytes]) -> None:
        """Copies what is leased, and believes it only if the lease's slots were not reused."""
        with namespace.load(hashes, ttl_seconds=1.0) as loaded:
            copies = [_NOTHING if view is None else view.copy() for view in loaded.views]
            loaded.valid()
        self._verdict += verdict_of(namespace.spec, hashes, loaded.statuses, copies)

    def _abandon(self, namespace: Namespace, hashes: list[bytes]) -> None:
        """Half of what it reserved is written, and nothing committed."""
        with namespace.reserve(hashes, ttl_seconds=1.0) as reservation:
            for cell in reservation.cells:
                if cell is not None and self._random.random() < 0.5:
                    cell[: cell.size // 2] = 0xEE

    def _forget(self, namespace: Namespace, hashes: list[bytes]) -> None:
        """Neither the hold nor the lease is given back: they end by themselves."""
        namespace.lookup(hashes, hold_seconds=0.5)
        namespace.load(hashes[:4], ttl_seconds=0.5)

    def _keep(self, namespace: Namespace, hashes: list[bytes]) -> None:
        """Now and then, a lease that nothing but the end of its session ends."""
        if self._random.random() < _KEPT_SHARE:
            namespace.load(hashes[:1], ttl_seconds=_KEPT_SECONDS)
            self._counts["kept"] += 1

    def _touch(self, namespace: Namespace, hashes: list[bytes]) -> None:
        with suppress(KvtierError):
            namespace.lookup(hashes, match=Match.PRESENCE)
        namespace.touch(hashes)
        namespace.prefetch(hashes)
        namespace.renew()
