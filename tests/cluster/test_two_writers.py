"""Two nodes write the same blocks at once, one evicts, one invalidates the namespace.

What is loaded is what was stored in this generation: each round stores other bytes under the same
keys. What was evicted and not stored again comes back from nowhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random

import pytest

from kvtier import NamespaceSpec
from kvtier.client.namespace import Namespace
from kvtier.core.block import BlockStatus, Tier
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.url import Transport
from tests.cluster.agents import Outcome, Peer, blocks_of, load, peers, present, store
from tests.faults.blocks import KIB, MIB, hashes_of
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.cluster

_SPEC = NamespaceSpec(name="contested", block_bytes=(64 * KIB,))
_SHARED = hashes_of("shared", 192)
_BATCH = 8
_ROUNDS = times(30)
_STEPS = 25
_EVICTIONS = 6
_HEARTBEAT_SECONDS = 0.5
#: For the heartbeat itself, on two processors that readers and writers keep busy.
_MARGIN_SECONDS = 4.5
_SOON_SECONDS = 20.0


@pytest.fixture(name="server")
def _server() -> Iterator[RedisServer]:
    with RedisServer(Transport.UNIX, maxmemory_bytes=256 * MIB) as server:
        yield server


@contextmanager
def _going_on(work: Sequence[Callable[[threading.Event], None]]) -> Iterator[None]:
    """Each in a thread of its own, until the block ends; their errors are this thread's."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(work)) as pool:
        running = [pool.submit(each, stop) for each in work]
        try:
            yield
        finally:
            stop.set()
        for each in running:
            each.result()


class _Round:
    """One generation of the namespace, on two nodes."""

    def __init__(self, both: Sequence[Peer], number: int) -> None:
        self._both = both
        self._number = number
        self._edition = f"edition {number}"
        self.outcome = Outcome()
        self.evicted: list[bytes] = []
        self._steps = 0
        self._lock = threading.Lock()

    def _judge(self, peer: Peer, hashes: Sequence[bytes]) -> None:
        found = load(peer.client.namespace(_SPEC), hashes, edition=self._edition)
        with self._lock:
            self.outcome += found

    def _batch(self, random: Random) -> list[bytes]:
        first = random.randrange(len(_SHARED) - _BATCH)
        return _SHARED[first : first + _BATCH]

    def _store(self, namespace: Namespace, hashes: Sequence[bytes]) -> None:
        """A node that hears only now of the new generation ends what is reserved in the old one."""
        statuses = namespace.store(hashes, blocks_of(_SPEC, hashes, edition=self._edition))
        assert set(statuses) <= {BlockStatus.OK, BlockStatus.PRESENT, BlockStatus.EXPIRED}

    def _write(self, peer: Peer, seed: int, stop: threading.Event) -> None:
        """Stores and loads what the other node does, too."""
        random = Random(f"{self._number} {seed}")
        namespace = peer.client.namespace(_SPEC)
        while not stop.is_set():
            self._store(namespace, self._batch(random))
            self._judge(peer, self._batch(random))
            if random.random() < 0.1:  # so that the cluster is asked
                peer.admin.evict_blocks(_SPEC.label, tiers=[Tier.HOST])
            with self._lock:
                self._steps += 1

    def _read(self, peer: Peer, stop: threading.Event) -> None:
        random = Random(self._number)
        while not stop.is_set():
            self._judge(peer, self._batch(random))

    def _evict(self, peer: Peer, stop: threading.Event) -> None:
        """Blocks of its own, at every point of their way; and some of the shared ones."""
        random = Random(self._number)
        namespace, admin = peer.client.namespace(_SPEC), peer.admin
        while not stop.is_set() or len(self.evicted) < _EVICTIONS * _BATCH:
            own = hashes_of(f"own {self._number} {len(self.evicted)}", _BATCH)
            self._store(namespace, own)
            if random.random() < 0.7:  # else on their way to the cluster
                peer.flush()
                admin.evict_blocks(_SPEC.label, own, tiers=[Tier.HOST])
                # On their way from the cluster.
                reader = threading.Thread(target=self._judge, args=(peer, own))
                reader.start()
                admin.evict_blocks(_SPEC.label, own)
                reader.join()
            else:
                admin.evict_blocks(_SPEC.label, own)
            self.evicted += own
            assert present(namespace, own) == 0
            admin.evict_blocks(_SPEC.label, self._batch(random))

    def run(self) -> None:
        """Writes, reads and evicts; then invalidates, on one node or the other."""
        a, b = self._both
        writers = [
            lambda stop, peer=peer, seed=seed: self._write(peer, seed, stop)
            for seed, peer in enumerate((a, b, a, b))
        ]
        with _going_on([*writers, lambda stop: self._evict(a, stop)]):
            wait_until(lambda: self._steps > 4 * _STEPS, _SOON_SECONDS)
        assert self.outcome.wrong == 0
        for peer in self._both:
            assert present(peer.client.namespace(_SPEC), self.evicted) == 0
        readers = [lambda stop, peer=peer: self._read(peer, stop) for peer in self._both]
        with _going_on(readers):
            self._invalidate(self._both[self._number % 2])
        assert self.outcome.wrong == 0
        assert self.outcome.right > 0

    def _invalidate(self, peer: Peer) -> None:
        """Nothing is found here at once, and nowhere after a heartbeat."""
        peer.admin.invalidate(_SPEC.label)
        everything = [*_SHARED, *self.evicted]
        assert present(peer.client.namespace(_SPEC), everything) == 0
        for each in self._both:
            namespace = each.client.namespace(_SPEC)
            wait_until(
                lambda namespace=namespace: present(namespace, everything) == 0,  # type: ignore[misc]
                _HEARTBEAT_SECONDS + _MARGIN_SECONDS,
            )
        for each in self._both:
            assert present(each.client.namespace(_SPEC), everything) == 0


def test_nothing_wrong_nothing_old_nothing_evicted_is_found(server: RedisServer) -> None:
    with peers(server.url, tiers__cluster__heartbeat=_HEARTBEAT_SECONDS) as both:
        for number in range(_ROUNDS):
            _Round(both, number).run()
        for peer in both:
            assert peer.cluster.corrupt_count == 0
            assert peer.cluster.hit_count > 0


def test_a_node_that_was_away_follows_when_it_is_back(server: RedisServer) -> None:
    """It was stopped while the namespace was invalidated."""
    hashes = _SHARED[:64]
    with peers(server.url, tiers__cluster__heartbeat=_HEARTBEAT_SECONDS) as (a, b):
        there = b.client.namespace(_SPEC)
        store(there, hashes, edition="old")
        b.flush()
        b.agent.pause()
        a.client.namespace(_SPEC).lookup(hashes)  # it knows the namespace
        a.admin.invalidate(_SPEC.label)
        b.agent.resume()
        wait_until(lambda: present(there, hashes) == 0, _HEARTBEAT_SECONDS + _MARGIN_SECONDS)
        store(a.client.namespace(_SPEC), hashes, edition="new")
        a.flush()
        wait_until(lambda: present(there, hashes) == 64, _SOON_SECONDS)
        assert load(there, hashes, edition="new") == Outcome(right=64)
