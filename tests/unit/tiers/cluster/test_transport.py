"""Behaviour of `kvtier.tiers.cluster.transport` with servers that send what no server should."""

from __future__ import annotations

import random
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from kvtier.tiers.cluster.exchange import Fetch
from kvtier.tiers.cluster.failure import ClusterDownError
from kvtier.tiers.cluster.replies import Misfit
from kvtier.tiers.cluster.store import ClusterStore
from kvtier.tiers.cluster.topology import ClusterSettings
from kvtier.tiers.cluster.url import parse_url
from tests.unit.tiers.cluster.values import fetch_into, get

SIZE = 300_000
HEAD = b"head"
PAYLOAD = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
GOOD = b"$%d\r\n" % (SIZE + 4) + HEAD + PAYLOAD.tobytes() + b"\r\n"
#: What is sent after the first command of a connection, with seconds in between.
Script = Sequence[bytes | float]


class ScriptedServer:
    """Answers the first command of each connection with its script, then hangs up, or not."""

    def __init__(self, script: Script, *, hangs_up: bool = True) -> None:
        self._script = script
        self._hangs_up = hangs_up
        self._is_over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(peer,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            peer.settimeout(5)
            try:
                if not peer.recv(1 << 16):
                    return
                for step in self._script:
                    if isinstance(step, float):
                        if self._is_over.wait(step):
                            return
                    else:
                        peer.sendall(step)
                if not self._hangs_up:
                    self._is_over.wait(5)
            except OSError:
                return

    def close(self) -> None:
        self._is_over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def answering(script: Script, *, hangs_up: bool = True) -> Iterator[ClusterStore]:
    server = ScriptedServer(script, hangs_up=hangs_up)
    store = ClusterStore(ClusterSettings(parse_url(server.url)))
    try:
        yield store
    finally:
        store.close()
        server.close()


def pieces(data: bytes, *sizes: int) -> list[bytes]:
    ends = np.cumsum(sizes)
    return [data[end - size : end] for end, size in zip(ends, sizes, strict=True)] + [
        data[int(ends[-1]) :]
    ]


def fetch(store: ClusterStore, seconds: float = 0.3) -> tuple[bytes | Misfit | None, bool]:
    """What came, and whether the payload is right."""
    cell = np.zeros(SIZE, np.uint8)
    head = fetch_into(store, b"name", 4, cell, time.monotonic() + seconds)
    return head, np.array_equal(cell, PAYLOAD)


@pytest.mark.parametrize(
    "cuts", [[1], [8], [9], [10], [13], [14], [9, 4], [13, SIZE], [13, SIZE, 1]]
)
def test_a_reply_may_come_in_any_pieces(cuts: list[int]) -> None:
    script: list[bytes | float] = []
    for piece in pieces(GOOD, *cuts):
        script += [piece, 0.01]
    with answering(script, hangs_up=False) as store:
        assert fetch(store, 2.0) == (HEAD, True)


def test_a_slow_reply_ends_by_the_deadline() -> None:
    drops: list[bytes | float] = []
    for start in range(0, len(GOOD), 10_000):
        drops += [GOOD[start : start + 10_000], 0.05]
    with answering(drops) as store:
        started = time.monotonic()
        with pytest.raises(ClusterDownError):
            fetch(store, 0.3)
        assert time.monotonic() - started < 0.39


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"$",
        b"$300004",
        GOOD[:-1],
        GOOD[:-2],
        GOOD[:1000],
        GOOD[:-2] + b"xx",
        b"$-2x\r\n",
        b"$" + b"9" * 40 + b"\r\n",
        b"$99999999999\r\nabc",
        b":1\r\n",
        b"*1\r\n$1\r\nx\r\n",
        b"\r\n",
        b"+" + b"x" * 100_000,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-MOVED nowhere\r\n",
        b"-MOVED 1 127.0.0.1:1\r\n",
        b"-ASK 1 127.0.0.1:1\r\n",
        b"-LOADING Redis is loading\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
        b"-READONLY You can't write\r\n",
        b"-\xff\x00\r\n",
        b"-ERR " + b"long" * 1000 + b"\r\n",
    ],
    ids=lambda reply: repr(reply[:20]),
)
@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_bad_reply_is_an_error_or_does_not_fit(reply: bytes, hangs_up: bool) -> None:
    with answering([reply], hangs_up=hangs_up) as store:
        started = time.monotonic()
        found = store.fetch([Fetch(b"name", 4, np.zeros(SIZE, np.uint8))], started + 0.3)
        assert isinstance(found[0], Misfit | ClusterDownError)
        assert len(str(found[0])) < 250
        assert time.monotonic() - started < 0.39


def test_what_is_behind_a_reply_is_not_taken_for_the_next() -> None:
    wrong = b"$%d\r\nevil" % (SIZE + 4) + bytes(SIZE) + b"\r\n"
    with answering([GOOD + wrong], hangs_up=False) as store:
        assert fetch(store) == (HEAD, True)
        assert fetch(store) == (HEAD, True)


def test_a_nil_and_a_value_may_come_together() -> None:
    with answering([b"$-1\r\n" + GOOD], hangs_up=False) as store:
        cells = [np.zeros(SIZE, np.uint8) for _ in range(2)]
        fetches = [Fetch(b"name", 4, cell) for cell in cells]
        assert store.fetch(fetches, time.monotonic() + 1) == [None, HEAD]
        assert np.array_equal(cells[1], PAYLOAD)


CALLS: list[Callable[[ClusterStore, float], object]] = [
    lambda store, deadline: store.exist([b"a", b"b"], deadline),
    lambda store, deadline: get(store, [b"a"], deadline),
    lambda store, deadline: store.fetch_head(b"a", 4, deadline),
    lambda store, deadline: store.store(b"a", [b"x"], 60, deadline),
    lambda store, deadline: list(store.scan(b"a", deadline)),
    lambda store, deadline: store.check(deadline),
    lambda store, deadline: fetch_into(store, b"a", 4, np.zeros(100, np.uint8), deadline),
]


@pytest.mark.parametrize("seed", range(40))
def test_noise_is_an_error_within_the_deadline_and_takes_no_memory(seed: int) -> None:
    noise = random.Random(seed)
    alphabet = [b"$", b"*", b"+", b"-", b":", b"\r\n", b"\r\n", b"1", b"9999999", b"-1", b"x\0"]
    text = b"".join(noise.choice(alphabet) for _ in range(noise.randrange(1, 400)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with answering([text], hangs_up=seed % 2 == 0) as store:
        for call in CALLS:
            started = time.monotonic()
            with suppress(ClusterDownError):
                call(store, started + 0.1)
            assert time.monotonic() - started < 0.2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.parametrize(
    "flood",
    [b"$9999999999\r\n", b"*999999999\r\n", b"*1\r\n" * 50, b"+", b"*100000\r\n" + b"$9\r\n"],
    ids=repr,
)
def test_a_flood_takes_no_memory(flood: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with answering([flood, *([b"$0\r\n\r\n" * 100_000] * 200)]) as store:
        for call in CALLS:
            started = time.monotonic()
            with suppress(ClusterDownError):
                call(store, started + 0.2)
            assert time.monotonic() - started < 0.4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10
