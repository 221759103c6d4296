"""A writer on one node, a reader on another, and a worker whose blocks are in HOST: all the time.

What they saw is judged by the test when it has ended, or while they go on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import TracebackType

from kvtier import Client, NamespaceSpec
from kvtier.core.block import Tier
from kvtier.errors import KvtierError
from tests.cluster.agents import Outcome, Peer, load, store
from tests.faults.blocks import KIB, hashes_of

SPEC = NamespaceSpec(name="shared", block_bytes=(64 * KIB,))
HOT = NamespaceSpec(name="hot", block_bytes=(64 * KIB,))
SEQUENCE_BLOCKS = 8
HOT_BLOCKS = 16
_KEPT_SEQUENCES = 150
_CALL_SECONDS = 10.0
_PAUSE_SECONDS = 0.01


@dataclass
class Seen:
    """What one worker saw. Times are in seconds."""

    outcome: Outcome = field(default_factory=Outcome)
    #: Of blocks that a lookup had found in the cluster.
    from_cluster: Outcome = field(default_factory=Outcome)
    lookups: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Load:
    """Three threads; a context manager that ends them. `name` tells its blocks from others'."""

    def __init__(self, writer: Peer, reader: Peer, name: str, *, seed: int = 0) -> None:
        self._name = name
        self._stopped = threading.Event()
        self._written: deque[str] = deque(maxlen=_KEPT_SEQUENCES)
        self._random = Random(f"{name} {seed}")
        self.writing, self.reading, self.hot = Seen(), Seen(), Seen()
        work: list[tuple[Seen, Peer, Callable[[Client], None]]] = [
            (self.writing, writer, self._write),
            (self.reading, reader, self._read),
            (self.hot, reader, self._stay_hot),
        ]
        self._threads = [threading.Thread(target=self._run, args=each) for each in work]
        self._hot_hashes = hashes_of(f"{name} hot", HOT_BLOCKS)
        with Client(reader.agent.address, timeout_seconds=_CALL_SECONDS) as client:
            store(client.namespace(HOT), self._hot_hashes)

    def _run(self, seen: Seen, peer: Peer, step: Callable[[Client], None]) -> None:
        try:
            with Client(peer.agent.address, timeout_seconds=_CALL_SECONDS) as client:
                while not self._stopped.wait(_PAUSE_SECONDS):
                    try:
                        step(client)
                    except KvtierError as error:
                        seen.errors.append(repr(error))
        except Exception as error:  # for the test's thread
            seen.errors.append(f"undocumented: {error!r}")

    def _write(self, client: Client) -> None:
        sequence = f"{self._name} {time.monotonic_ns()}"
        store(client.namespace(SPEC), hashes_of(sequence, SEQUENCE_BLOCKS))
        self.writing.outcome += Outcome(right=SEQUENCE_BLOCKS)
        self._written.append(sequence)

    def _read(self, client: Client) -> None:
        written = list(self._written)
        if not written:
            return
        # New ones often: they are in the cluster and not here.
        index = max(self._random.randrange(len(written)), self._random.randrange(len(written)))
        hashes = hashes_of(written[index], SEQUENCE_BLOCKS)
        namespace = client.namespace(SPEC)
        begin = time.monotonic()
        found = namespace.lookup(hashes)
        self.reading.lookups.append(time.monotonic() - begin)
        if found.matched:
            begin = time.monotonic()
            outcome = load(namespace, hashes[: found.matched])
            self.reading.loads.append(time.monotonic() - begin)
            self.reading.outcome += outcome
            if all(tier is Tier.CLUSTER for tier, _ in found.runs):
                self.reading.from_cluster += outcome

    def _stay_hot(self, client: Client) -> None:
        namespace = client.namespace(HOT)
        begin = time.monotonic()
        found = namespace.lookup(self._hot_hashes)
        self.hot.lookups.append(time.monotonic() - begin)
        outcome = load(namespace, self._hot_hashes)
        self.hot.loads.append(time.monotonic() - begin)
        self.hot.outcome += outcome
        assert found.matched == HOT_BLOCKS

    @property
    def cluster_hits(self) -> int:
        """Right blocks that came from the cluster so far."""
        return self.reading.from_cluster.right

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def judge(self, longest_lookup_seconds: float) -> None:
        """What holds whatever the cluster does."""
        for seen in (self.writing, self.reading, self.hot):
            assert seen.errors == []
            assert seen.outcome.wrong == 0
        assert self.hot.outcome.absent == 0, "hits in HOST were disturbed"
        assert self.hot.outcome.right > 0
        assert max(self.reading.lookups) < longest_lookup_seconds
        # Nobody waits for the cluster whose blocks are here.
        ordered = sorted(self.hot.lookups)
        assert ordered[len(ordered) * 95 // 100] < longest_lookup_seconds / 4
