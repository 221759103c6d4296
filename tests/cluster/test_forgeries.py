"""Values that somebody else wrote under the names of real blocks: none is accepted, all are
counted."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from random import Random

import pytest
import redis

from kvtier import NamespaceSpec
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.url import Transport
from tests.cluster.agents import Outcome, Peer, load, peers, present
from tests.cluster.forgeries import FORGERIES, MISTAKES, Author, Maker
from tests.faults.blocks import KIB, MIB, hashes_of
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.cluster

_BATCH = 50
_SOON_SECONDS = 10.0
_SMALL = NamespaceSpec(name="small", block_bytes=(4 * KIB,))
#: Of three parts and a little.
_LARGE = NamespaceSpec(name="large", block_bytes=(196 * KIB,))


@pytest.fixture(name="server")
def _server() -> Iterator[RedisServer]:
    with RedisServer(Transport.UNIX, maxmemory_bytes=256 * MIB) as server:
        yield server


@pytest.fixture(name="raw")
def _raw(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(server.socket_path), driver_info=None) as raw:
        yield raw


def _write(raw: redis.Redis, authors: Sequence[Author], makers: Sequence[Maker]) -> None:
    with raw.pipeline(transaction=False) as pipeline:
        for author, maker in zip(authors, makers, strict=True):
            for name, value in maker(author).items():
                pipeline.set(name, value)
        pipeline.execute()


def _read(peer: Peer, spec: NamespaceSpec, hashes: Sequence[bytes]) -> Outcome:
    """After a lookup has found all of them."""
    namespace = peer.client.namespace(spec)
    wait_until(lambda: present(namespace, hashes) == len(hashes), _SOON_SECONDS)
    return load(namespace, hashes)


def _refuses(
    peer: Peer, raw: redis.Redis, makers: Sequence[Maker], keys: dict[int, bytes], count: int
) -> None:
    random = Random(secrets.randbits(64))
    written: Counter[str] = Counter()
    endless = cycle(makers)
    for number in range(-(-count // _BATCH)):
        spec = (_SMALL, _LARGE)[number % 2]
        hashes = hashes_of(f"forged {number}", _BATCH)
        authors = [Author(spec, each, keys, random) for each in hashes]
        batch = list(islice(endless, _BATCH))
        written.update(each.__name__ for each in batch)
        before = peer.cluster.corrupt_count
        _write(raw, authors, batch)
        assert _read(peer, spec, hashes) == Outcome(absent=_BATCH)
        assert peer.cluster.corrupt_count - before == _BATCH
    assert set(written) == {each.__name__ for each in makers}
    assert peer.cluster.promoted_count == 0


def _accepts(peer: Peer, raw: redis.Redis, keys: dict[int, bytes]) -> None:
    """The other way round: what an author writes who does nothing wrong."""
    for spec in (_SMALL, _LARGE):
        hashes = hashes_of("right", _BATCH)
        authors = [Author(spec, each, keys, Random(0)) for each in hashes]
        _write(raw, authors, [Author.sealed] * _BATCH)
        assert _read(peer, spec, hashes) == Outcome(right=_BATCH)


def test_a_node_with_keys_accepts_no_forgery(
    server: RedisServer, raw: redis.Redis, tmp_path: Path
) -> None:
    keys = {1: secrets.token_bytes(32), 2: secrets.token_bytes(32)}
    file = tmp_path / "keys"
    file.write_text(f"1 {keys[1].hex()}\n2 {keys[2].hex()} current\n")
    file.chmod(0o600)
    with peers(server.url, 1, tiers__cluster__keys_file=file) as [peer]:
        _refuses(peer, raw, FORGERIES, keys, times(4000))
        _accepts(peer, raw, keys)


def test_a_node_without_keys_accepts_no_accident(server: RedisServer, raw: redis.Redis) -> None:
    with peers(server.url, 1) as [peer]:
        _refuses(peer, raw, MISTAKES, {}, times(1000))
        _accepts(peer, raw, {})


def test_what_is_of_another_type_is_a_miss(server: RedisServer, raw: redis.Redis) -> None:
    hashes = hashes_of("listed", 8)
    with peers(server.url, 1) as [peer]:
        for block_hash in hashes:
            raw.rpush(Author(_SMALL, block_hash, {}, Random(0)).name, b"1")
        assert _read(peer, _SMALL, hashes) == Outcome(absent=8)
        assert peer.cluster.corrupt_count == 8
