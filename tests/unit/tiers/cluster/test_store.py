"""Behaviour of `kvtier.tiers.cluster.store` on one real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from kvtier.memory import ByteArray
from kvtier.testing.redis_servers import Certificates, RedisServer, tls_binary
from kvtier.tiers.cluster.exchange import Fetch
from kvtier.tiers.cluster.failure import ClusterDownError, Failure
from kvtier.tiers.cluster.replies import Misfit
from kvtier.tiers.cluster.report import Concern
from kvtier.tiers.cluster.store import ClusterStore, Existing
from kvtier.tiers.cluster.topology import ClusterSettings
from kvtier.tiers.cluster.url import Credentials, TlsFiles, Transport, parse_url
from tests.faults.waiting import wait_until
from tests.unit.tiers.cluster.values import fetch_into, get

SIZES = [0, 1, 63, 4096, 65_533, 262_145, 2 << 20, 8 << 20]
HEAD = b"a head of some bytes"
PASSWORD = "p w\u00e4rd"


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def payload(size_bytes: int, seed: int = 0) -> ByteArray:
    return np.random.default_rng(seed).integers(0, 256, size_bytes, np.uint8)


def settings_of(server: RedisServer) -> ClusterSettings:
    made = server.certificates
    tls = TlsFiles() if made is None else TlsFiles(ca_file=made.ca_file)
    return ClusterSettings(
        parse_url(server.url), Credentials(password=server.password), tls, connections=3
    )


@pytest.fixture(scope="module", params=list(Transport), ids=lambda each: each.value)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    if request.param is Transport.TLS and tls_binary() is None:
        pytest.skip("no redis-server with TLS")
    with RedisServer(request.param, password=PASSWORD, maxmemory_bytes=256 << 20) as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[ClusterStore]:
    store = ClusterStore(settings_of(server))
    yield store
    store.close()


@pytest.fixture
def own_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """One to be mistreated."""
    transport = getattr(request, "param", Transport.TCP)
    if transport is Transport.TLS and tls_binary() is None:
        pytest.skip("no redis-server with TLS")
    with RedisServer(transport, maxmemory_bytes=256 << 20) as server:
        yield server


@pytest.fixture
def own_store(own_server: RedisServer) -> Iterator[ClusterStore]:
    store = ClusterStore(settings_of(own_server))
    yield store
    store.close()


@pytest.mark.parametrize("size_bytes", SIZES)
def test_what_is_stored_is_fetched(
    server: RedisServer, store: ClusterStore, size_bytes: int
) -> None:
    block = payload(size_bytes)
    half = size_bytes // 2
    assert store.store(b"block", [HEAD, block[:half], block[half:]], 60, soon())
    assert server.call("GET", "block") == HEAD + block.tobytes()
    cell = np.full(size_bytes, 7, np.uint8)
    assert fetch_into(store, b"block", len(HEAD), cell, soon()) == HEAD
    assert np.array_equal(cell, block)
    assert store.fetch_head(b"block", 6, soon()) == HEAD[:6]
    assert 0 < server.call("TTL", "block") <= 60


def test_many_fetches_have_each_their_answer(store: ClusterStore) -> None:
    blocks = {b"b%d" % number: payload(2 << 20, number) for number in range(6)}
    for name, block in blocks.items():
        store.store(name, [HEAD, block], 60, soon())
    store.put(b"small", b"x" * 500, 60, soon())
    store.put(b"large", bytes(9 << 20), 60, soon())
    names = [b"b0", b"none", b"b1", b"small", b"b2", b"large", b"b3", b"none", b"b4", b"b5"]
    cells = [np.zeros(2 << 20, np.uint8) for _ in names]
    fetches = [Fetch(name, 20, cell) for name, cell in zip(names, cells, strict=True)]
    found = store.fetch(fetches, soon())
    for name, cell, each in zip(names, cells, found, strict=True):
        if name in blocks:
            assert each == HEAD
            assert np.array_equal(cell, blocks[name])
        else:
            expected = {b"none": None, b"small": Misfit(500), b"large": Misfit(9 << 20)}
            assert each == expected[name]
            assert not cell.any()


def test_threads_do_not_mix_up_their_blocks(store: ClusterStore) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        block, cell = payload(300_000 + number, number), np.zeros(300_000 + number, np.uint8)
        for _ in range(10):
            store.store(b"t%d" % number, [HEAD, block], 60, soon(20))
            cell.fill(0)
            is_right = fetch_into(store, b"t%d" % number, 20, cell, soon(20)) == HEAD
            if not is_right or not np.array_equal(cell, block):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_value_may_be_kept(store: ClusterStore) -> None:
    store.delete([b"kept"], soon())
    assert store.store(b"kept", [b"first"], 60, soon(), Existing.KEEP)
    assert not store.store(b"kept", [b"second"], 60, soon(), Existing.KEEP)
    assert get(store, [b"kept", b"none"], soon()) == [b"first", None]
    assert store.store(b"kept", [b"third"], 60, soon())
    assert get(store, [b"kept"], soon()) == [b"third"]


def test_names_are_found_by_their_beginning(store: ClusterStore) -> None:
    names = [b"odd[*?\\]:%d\r\n" % number for number in range(30)]
    for name in names:
        store.put(name, b"", 60, soon())
    store.put(b"oddly", b"", 60, soon())
    assert set(store.scan(b"odd[*?\\]:", soon())) == set(names)
    assert store.exist([*names, b"no"], soon()) == [True] * 30 + [False]
    assert store.delete([*names, b"no"], soon()) == 30
    assert store.exist(names, soon()) == [False] * 30
    assert store.exist([], soon()) == []


def test_a_key_of_another_type_does_not_fit(server: RedisServer, store: ClusterStore) -> None:
    server.call("DEL", "list")
    server.call("RPUSH", "list", "x")
    assert fetch_into(store, b"list", 0, np.zeros(1, np.uint8), soon()) == Misfit(-1)
    server.call("DEL", "list")


def test_512_names_take_one_round_trip(own_server: RedisServer, own_store: ClusterStore) -> None:
    names = [b"%064d" % number for number in range(512)]
    own_store.exist(names, soon())
    before = own_server.call("INFO", "stats")["total_reads_processed"]
    assert own_store.exist(names, soon()) == [False] * 512
    reads = own_server.call("INFO", "stats")["total_reads_processed"] - before
    assert own_server.calls_of("exists") == 1024
    # The server reads 16 KiB at a time; waiting for an answer to each would be 512 reads.
    assert reads <= 512 * 100 // (16 << 10) + 4


def test_a_check_warns(own_server: RedisServer, own_store: ClusterStore) -> None:
    report = own_store.check(soon())
    assert (report.mode, report.servers, report.maxmemory_bytes) == ("standalone", 1, 256 << 20)
    assert report.concerns == ()
    own_server.call("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction")
    report = own_store.check(soon())
    assert report.maxmemory_bytes == 0
    assert set(report.concerns) == {Concern.NO_EVICTION, Concern.NO_LIMIT}


# What goes wrong.


def failure_of(call: Callable[[], object]) -> Failure:
    with pytest.raises(ClusterDownError) as raised:
        call()
    assert len(str(raised.value)) < 250
    return raised.value.failure


@pytest.mark.parametrize("own_server", list(Transport), indirect=True)
def test_a_paused_server_costs_the_deadline_and_no_more(
    own_server: RedisServer, own_store: ClusterStore
) -> None:
    block, cell = payload(8 << 20), np.zeros(8 << 20, np.uint8)
    own_store.store(b"block", [block], 60, soon())
    own_server.pause()
    calls: list[Callable[[float], object]] = [
        lambda deadline: own_store.store(b"x", [block], 60, deadline),
        lambda deadline: fetch_into(own_store, b"block", 0, cell, deadline),
        lambda deadline: own_store.exist([b"x"], deadline),
        lambda deadline: get(own_store, [b"x"], deadline),
        own_store.check,
        lambda deadline: list(own_store.scan(b"x", deadline)),
    ]
    try:
        for call in calls:
            started = time.monotonic()
            assert failure_of(lambda call=call: call(soon(0.3))) is Failure.TIMEOUT  # type: ignore[misc]
            assert 0.25 < time.monotonic() - started < 0.39
    finally:
        own_server.resume()
    assert fetch_into(own_store, b"block", 0, cell, soon()) == b""
    assert np.array_equal(cell, block)


@pytest.mark.parametrize("own_server", list(Transport), indirect=True)
def test_a_server_that_is_killed_while_it_sends(
    own_server: RedisServer, own_store: ClusterStore
) -> None:
    block = payload(8 << 20)
    own_store.store(b"block", [block], 60, soon())
    first, other = np.zeros(8 << 20, np.uint8), np.zeros(8 << 20, np.uint8)

    def kill_amid_the_second() -> None:
        wait_until(lambda: other.any(), 10)
        own_server.kill()

    killer = threading.Thread(target=kill_amid_the_second)
    killer.start()
    started = time.monotonic()
    fetches = [Fetch(b"block", 0, first)] + [Fetch(b"block", 0, other)] * 400
    found = own_store.fetch(fetches, soon())
    killer.join()
    assert time.monotonic() - started < 4
    assert found[0] == b""
    assert isinstance(found[-1], ClusterDownError)
    assert found[-1].failure is Failure.CONNECTION
    own_server.start()
    assert own_store.exist([b"block"], soon()) == [False]
    assert own_store.store(b"block", [block], 60, soon())


def test_a_restart_is_not_noticed(own_server: RedisServer, own_store: ClusterStore) -> None:
    own_store.put(b"x", b"1", 60, soon())
    own_server.kill()
    own_server.start()
    assert get(own_store, [b"x"], soon()) == [None]


def test_a_full_server_refuses_blocks_and_serves_what_it_has() -> None:
    with RedisServer(maxmemory_bytes=8 << 20, policy="noeviction") as server:
        store = ClusterStore(settings_of(server))
        store.put(b"x", b"1", 60, soon())
        block = payload(2 << 20)

        def fill() -> None:
            for number in range(9):
                store.store(b"b%d" % number, [block], 60, soon())

        assert failure_of(fill) is Failure.OUT_OF_MEMORY
        assert get(store, [b"x"], soon()) == [b"1"]
        store.close()


@pytest.mark.parametrize("password", ["", "wrong"])
def test_a_wrong_password_is_told_at_once(server: RedisServer, password: str) -> None:
    settings = replace(settings_of(server), credentials=Credentials(password=password))
    store = ClusterStore(settings)
    started = time.monotonic()
    assert failure_of(lambda: store.exist([b"x"], soon())) is Failure.AUTHENTICATION
    assert failure_of(lambda: store.check(soon())) in (Failure.AUTHENTICATION, Failure.REFUSED)
    assert time.monotonic() - started < 1
    store.close()


def test_a_certificate_of_another_ca_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if tls_binary() is None:
        pytest.skip("no redis-server with TLS")
    other = Certificates(tmp_path_factory.mktemp("other"))
    with RedisServer(Transport.TLS) as server:
        for tls in (TlsFiles(ca_file=other.ca_file), TlsFiles()):
            store = ClusterStore(replace(settings_of(server), tls=tls))
            with pytest.raises(ClusterDownError, match="certificate"):
                store.exist([b"x"], soon())
            store.close()


def test_a_client_certificate_is_shown() -> None:
    if tls_binary() is None:
        pytest.skip("no redis-server with TLS")
    with RedisServer(Transport.TLS, options={"tls-auth-clients": "yes"}) as server:
        made = server.certificates
        assert made is not None
        store = ClusterStore(settings_of(server))
        assert failure_of(lambda: store.exist([b"x"], soon())) is Failure.CONNECTION
        store.close()
        tls = TlsFiles(made.ca_file, made.cert_file, made.key_file)
        store = ClusterStore(replace(settings_of(server), tls=tls))
        assert store.exist([b"x"], soon()) == [False]
        store.close()


def test_no_server_is_told_at_once() -> None:
    store = ClusterStore(ClusterSettings(parse_url("redis://127.0.0.1:1")))
    started = time.monotonic()
    assert failure_of(lambda: store.exist([b"x"], soon())) is Failure.CONNECTION
    assert time.monotonic() - started < 1
    assert failure_of(lambda: store.exist([b"x"], soon(-1))) is Failure.TIMEOUT
    store.close()


def test_a_closed_store_says_so(own_server: RedisServer) -> None:
    store = ClusterStore(settings_of(own_server))
    store.put(b"x", b"1", 60, soon())
    own_server.pause()
    waiting = threading.Thread(target=failure_of, args=(lambda: get(store, [b"x"], soon()),))
    waiting.start()
    time.sleep(0.05)
    started = time.monotonic()
    store.close()
    waiting.join()
    assert time.monotonic() - started < 1
    own_server.resume()
    assert failure_of(lambda: get(store, [b"x"], soon())) is Failure.CONNECTION


def test_waiting_for_a_connection_ends_by_the_deadline(own_server: RedisServer) -> None:
    store = ClusterStore(replace(settings_of(own_server), connections=1))
    store.put(b"x", b"1", 60, soon())
    own_server.pause()
    first = threading.Thread(target=failure_of, args=(lambda: get(store, [b"x"], soon(1.0)),))
    first.start()
    time.sleep(0.05)
    started = time.monotonic()
    assert failure_of(lambda: get(store, [b"x"], soon(0.2))) is Failure.TIMEOUT
    assert time.monotonic() - started < 0.3
    first.join()
    own_server.resume()
    store.close()
