"""Behaviour of `kvtier.tiers.cluster.blocks` on a real server."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import xxhash

from kvtier.core.block import BlockKey, Lane
from kvtier.core.namespace import NamespaceSpec, identity_digest
from kvtier.memory import ByteArray
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.blocks import ClusterBlocks, FetchedBlock, Wanted
from kvtier.tiers.cluster.codec import Codec
from kvtier.tiers.cluster.failure import ClusterDownError, Failure
from kvtier.tiers.cluster.sealing import (
    HEADER_BYTES,
    MIN_PART_BYTES,
    Fault,
    Sealer,
    SealError,
    key_name,
)
from kvtier.tiers.cluster.store import ClusterStore
from kvtier.tiers.cluster.topology import ClusterSettings
from kvtier.tiers.cluster.url import Transport, parse_url

MIB = 1 << 20
SPEC = NamespaceSpec(tenant="acme", name="llama", block_bytes=(2 * MIB,))
IDENTITY = identity_digest(SPEC, bytes(16))
GENERATION = identity_digest(SPEC, bytes(range(16)))
NAMESPACE = identity_digest(NamespaceSpec(name="other", block_bytes=(2 * MIB,)), bytes(16))
LANE, TTL_SECONDS = Lane(0, 1), 100
PLAIN = Sealer({}, None)
MARKED = Sealer({7: bytes(range(32))}, 7)
OTHER_KEY = Sealer({8: bytes(range(1, 33))}, 8)
WRONG_KEY = Sealer({7: bytes(range(1, 33))}, 7)
SIZES = [1, 4096, 2 * MIB, 2 * MIB + 1, 5 * MIB]


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def payload(size_bytes: int, seed: int = 0) -> ByteArray:
    """Numbers of 16 bits whose high bytes repeat themselves."""
    data = np.random.default_rng(seed).integers(0, 256, size_bytes, np.uint8)
    data[1::2] &= 3
    return data


def key_of(number: int, lane: Lane = LANE) -> BlockKey:
    return BlockKey(lane, bytes([number]) * 32, bytes([number + 1]) * 32, number)


def name_of(key: BlockKey, identity: bytes = IDENTITY) -> bytes:
    return key_name("test", identity, key.lane, key.block_hash)


def wanted(key: BlockKey, length: int) -> Wanted:
    return Wanted(key.lane, key.block_hash, np.zeros(length + 5, np.uint8), length)


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer(Transport.UNIX, maxmemory_bytes=256 * MIB) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    """With nothing stored."""
    running.call("FLUSHALL")
    return running


class Node:
    """What a node has: a store and its blocks."""

    def __init__(self, server: RedisServer, sealer: Sealer = MARKED) -> None:
        self.transport = ClusterStore(ClusterSettings(parse_url(server.url)))
        self.blocks = self.with_sealer(sealer)

    def with_sealer(self, sealer: Sealer) -> ClusterBlocks:
        return ClusterBlocks(self.transport, sealer, key_prefix="test", ttl_seconds=TTL_SECONDS)

    def put(self, key: BlockKey, block: ByteArray, codec: Codec = Codec.NONE) -> None:
        self.blocks.store(IDENTITY, key, block, codec, soon())

    def take(self, key: BlockKey, length: int) -> FetchedBlock:
        [fetched] = self.blocks.fetch(IDENTITY, [wanted(key, length)], soon())
        return fetched

    def takes(self, key: BlockKey, block: ByteArray) -> bool:
        """Whether a fetch brings exactly this."""
        there = wanted(key, len(block))
        [fetched] = self.blocks.fetch(IDENTITY, [there], soon())
        is_right = np.array_equal(there.cell[: len(block)], block)
        assert not there.cell[len(block) :].any()
        return fetched == key and is_right


@pytest.fixture
def node(server: RedisServer) -> Iterator[Node]:
    node = Node(server)
    yield node
    node.transport.close()


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """One to be mistreated."""
    with RedisServer(Transport.UNIX, maxmemory_bytes=256 * MIB) as server:
        yield server


@pytest.fixture
def own_node(own_server: RedisServer) -> Iterator[Node]:
    node = Node(own_server)
    yield node
    node.transport.close()


# What is stored comes back.


@pytest.mark.parametrize("sealer", [PLAIN, MARKED], ids=["plain", "marked"])
@pytest.mark.parametrize("codec", Codec, ids=lambda each: each.name)
@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_block_comes_back(node: Node, size_bytes: int, codec: Codec, sealer: Sealer) -> None:
    node.blocks = node.with_sealer(sealer)
    key, block = key_of(1), payload(size_bytes)
    node.put(key, block, codec)
    for _ in range(2):  # the second time it may be known how blocks are stored here
        assert node.takes(key, block)
    assert node.blocks.exist(IDENTITY, LANE, [key.block_hash, bytes(32)], soon()) == [True, False]
    assert node.take(key_of(2), size_bytes) is None


def test_blocks_of_all_kinds_come_in_one_pass(node: Node) -> None:
    small_parts = node.with_sealer(Sealer({7: bytes(range(32))}, 7, part_bytes=MIN_PART_BYTES))
    blocks = {key_of(number): payload(size, number) for number, size in enumerate([*SIZES, *SIZES])}
    for number, (key, block) in enumerate(blocks.items()):
        writer = small_parts if number % 3 else node.blocks
        writer.store(IDENTITY, key, block, Codec(number % 2), soon())
    for _ in range(2):
        there = [wanted(key, len(block)) for key, block in blocks.items()]
        there.insert(3, wanted(key_of(99), 7))
        expected: list[BlockKey | None] = [*blocks]
        expected.insert(3, None)
        assert node.blocks.fetch(IDENTITY, there, soon()) == expected
        del there[3]
        for each, block in zip(there, blocks.values(), strict=True):
            assert np.array_equal(each.cell[: each.length], block)
    assert node.blocks.fetch(IDENTITY, [], soon()) == []


def test_plain_blocks_take_one_round_trip_and_coded_ones_are_received_once(
    server: RedisServer, node: Node
) -> None:
    def commands_of(call: Callable[[], object]) -> dict[str, int]:
        names = ("get", "strlen", "getrange")
        before = [server.calls_of(name) for name in names]
        call()
        return {name: server.calls_of(name) - n for name, n in zip(names, before, strict=True)}

    block = payload(2 * MIB)
    node.put(key_of(1), block)
    node.put(key_of(2), block, Codec.PLANES_LZ4)
    plain = {"get": 1, "strlen": 0, "getrange": 0}
    assert commands_of(lambda: node.takes(key_of(1), block)) == plain
    assert commands_of(lambda: node.takes(key_of(2), block)) == plain | {"get": 2}
    assert commands_of(lambda: node.takes(key_of(2), block)) == plain | {"strlen": 1}
    assert commands_of(lambda: node.takes(key_of(1), block)) == plain | {"strlen": 1}
    assert commands_of(lambda: node.takes(key_of(1), block)) == plain


def test_plain_blocks_are_not_copied(node: Node) -> None:
    block, there = payload(8 * MIB), wanted(key_of(1), 8 * MIB)
    node.blocks.exist(IDENTITY, LANE, [], soon())
    tracemalloc.start()
    try:
        node.put(key_of(1), block)
        assert node.blocks.fetch(IDENTITY, [there], soon()) == [key_of(1)]
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_further_parts_outlive_their_head(server: RedisServer, node: Node) -> None:
    node.put(key_of(1), payload(5 * MIB))
    names = server.call("KEYS", "*")
    assert len(names) == 3
    ttls = {name: server.call("TTL", name) for name in names}
    head = ttls.pop(name_of(key_of(1)))
    assert 0 < head <= TTL_SECONDS < min(ttls.values())


def test_a_block_that_was_stored_in_part_is_none(own_server: RedisServer, own_node: Node) -> None:
    own_server.call("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", str(10 * MIB))
    with pytest.raises(ClusterDownError) as raised:
        own_node.put(key_of(1), payload(20 * MIB))
    assert raised.value.failure is Failure.OUT_OF_MEMORY
    assert own_server.call("DBSIZE") > 0
    assert own_node.blocks.exist(IDENTITY, LANE, [key_of(1).block_hash], soon()) == [False]
    assert own_node.take(key_of(1), 20 * MIB) is None


def test_two_writers_of_one_block_do_not_mix(server: RedisServer, node: Node) -> None:
    key, mine, other = key_of(1), payload(5 * MIB, 1), payload(5 * MIB, 2)
    node.put(key, mine)
    head_of_mine = server.call("GET", name_of(key))
    node.put(key, other)
    assert server.call("DBSIZE") == 1 + 2 + 2
    assert node.takes(key, other)
    server.call("SET", name_of(key), head_of_mine)
    assert node.takes(key, mine)

    def write(block: ByteArray) -> None:
        for _ in range(8):
            node.put(key, block)

    writers = [threading.Thread(target=write, args=(block,)) for block in (mine, other)]
    for writer in writers:
        writer.start()
    wrong = 0
    while any(writer.is_alive() for writer in writers):
        there = wanted(key, 5 * MIB)
        [fetched] = node.blocks.fetch(IDENTITY, [there], soon())
        cell = there.cell[: 5 * MIB]
        if fetched != key or not any(np.array_equal(cell, block) for block in (mine, other)):
            wrong += 1
    for writer in writers:
        writer.join()
    assert wrong == 0


# What is not the block that is wanted is refused.


def changed(value: bytes, offset: int) -> bytes:
    return value[:offset] + bytes([value[offset] ^ 0x10]) + value[offset + 1 :]


def mended(value: bytes) -> bytes:
    """With the checksum that somebody without the key can compute."""
    checksum = xxhash.xxh3_64_intdigest(value[:312]).to_bytes(8, "little")
    return value[:312] + checksum + value[HEADER_BYTES:]


VALUES: dict[str, tuple[Callable[[bytes], bytes], Fault]] = {
    "empty": (lambda value: b"", Fault.DAMAGED),
    "less than a header": (lambda value: value[:100], Fault.DAMAGED),
    "the header alone": (lambda value: value[:HEADER_BYTES], Fault.DAMAGED),
    "one byte of payload": (lambda value: value[: HEADER_BYTES + 1], Fault.DAMAGED),
    "one byte less": (lambda value: value[:-1], Fault.DAMAGED),
    "one byte more": (lambda value: value + b"x", Fault.DAMAGED),
    "far too long": (lambda value: value + bytes(9 * MIB), Fault.DAMAGED),
    "not sealed at all": (lambda value: bytes(len(value)), Fault.DAMAGED),
    "a torn header": (lambda value: changed(value, 20), Fault.DAMAGED),
    "another version": (lambda value: changed(value, 8), Fault.VERSION),
    "another position": (lambda value: mended(changed(value, 20)), Fault.FORGED),
    "another length": (lambda value: mended(changed(value, 24)), Fault.FORGED),
    "another payload": (lambda value: changed(value, 5000), Fault.FORGED),
    "the payload's end": (lambda value: changed(value, len(value) - 1), Fault.FORGED),
}


@pytest.mark.parametrize("codec", Codec, ids=lambda each: each.name)
@pytest.mark.parametrize("change", VALUES)
def test_a_changed_value_is_refused_and_its_neighbours_are_not(
    server: RedisServer, node: Node, change: str, codec: Codec
) -> None:
    keys, block = [key_of(number) for number in range(3)], payload(100_000)
    for key in keys:
        node.put(key, block, codec)
    make, fault = VALUES[change]
    server.call("SET", name_of(keys[1]), make(server.call("GET", name_of(keys[1]))))
    for _ in range(2):
        there = [wanted(key, len(block)) for key in keys]
        before, bad, after = node.blocks.fetch(IDENTITY, there, soon())
        assert (before, after) == (keys[0], keys[2])
        assert np.array_equal(there[0].cell[: len(block)], block)
        assert np.array_equal(there[2].cell[: len(block)], block)
        assert isinstance(bad, SealError)
        assert bad.fault is fault


@pytest.mark.parametrize(
    ("sealer", "fault"),
    [(PLAIN, Fault.UNSEALED), (OTHER_KEY, Fault.UNKNOWN_KEY), (WRONG_KEY, Fault.FORGED)],
)
def test_what_was_sealed_with_another_key_is_refused(
    node: Node, sealer: Sealer, fault: Fault
) -> None:
    node.with_sealer(sealer).store(IDENTITY, key_of(1), payload(4096), Codec.NONE, soon())
    fetched = node.take(key_of(1), 4096)
    assert isinstance(fetched, SealError)
    assert fetched.fault is fault


@pytest.mark.parametrize("sealer", [PLAIN, MARKED], ids=["plain", "marked"])
@pytest.mark.parametrize(
    ("identity", "key"),
    [
        (IDENTITY, key_of(2)),
        (IDENTITY, key_of(1, Lane(1, 0))),
        (NAMESPACE, key_of(1)),
        (GENERATION, key_of(1)),
    ],
    ids=["block", "lane", "namespace", "generation"],
)
def test_what_was_moved_here_is_refused(
    server: RedisServer, node: Node, identity: bytes, key: BlockKey, sealer: Sealer
) -> None:
    blocks = node.with_sealer(sealer)
    blocks.store(identity, key, payload(4096), Codec.NONE, soon())
    server.call("RENAME", name_of(key, identity), name_of(key_of(1)))
    [fetched] = blocks.fetch(IDENTITY, [wanted(key_of(1), 4096)], soon())
    assert isinstance(fetched, SealError)
    assert fetched.fault is Fault.FOREIGN


@pytest.mark.parametrize("codec", Codec, ids=lambda each: each.name)
def test_a_block_of_another_length_is_refused(node: Node, codec: Codec) -> None:
    for size_bytes in SIZES:
        node.put(key_of(1), payload(size_bytes), codec)
        for length in SIZES:
            if length != size_bytes:
                fetched = node.take(key_of(1), length)
                assert isinstance(fetched, SealError)
                is_longer = size_bytes > length
                assert fetched.fault is (Fault.OVERSIZE if is_longer else Fault.DAMAGED)


@pytest.mark.parametrize("codec", Codec, ids=lambda each: each.name)
def test_a_block_without_all_its_parts_is_refused(
    server: RedisServer, node: Node, codec: Codec
) -> None:
    node.blocks = node.with_sealer(Sealer({}, None, part_bytes=MIN_PART_BYTES))
    key, block = key_of(1), payload(4 * MIN_PART_BYTES)
    node.put(key, block, codec)
    names = sorted(each for each in server.call("KEYS", "*") if each != name_of(key))
    values = [server.call("GET", name) for name in names]

    def refused_with(*commands: tuple[Any, ...]) -> str:
        for command in commands:
            server.call(*command)
        fetched = node.take(key, len(block))
        assert isinstance(fetched, SealError)
        assert fetched.fault is Fault.DAMAGED
        for name, value in zip(names, values, strict=True):
            server.call("SET", name, value)
        assert node.takes(key, block)
        return str(fetched)

    for name in names:
        assert "missing" in refused_with(("DEL", name))
    assert "bytes" in refused_with(("SET", names[0], values[0][:-1]))
    assert "bytes" in refused_with(("APPEND", names[-1], "x"))
    assert "bytes" in refused_with(("DEL", names[0]), ("RPUSH", names[0], "x"))
    assert "digest" in refused_with(("SET", names[0], changed(values[0], 7)))
    if codec is Codec.NONE:
        assert "digest" in refused_with(("SET", names[0], values[1]), ("SET", names[1], values[0]))


def test_a_key_of_another_type_is_refused(server: RedisServer, node: Node) -> None:
    server.call("RPUSH", name_of(key_of(1)), "x")
    fetched = node.take(key_of(1), 4096)
    assert isinstance(fetched, SealError)
    assert fetched.fault is Fault.DAMAGED


@pytest.mark.parametrize("offset", [20, 5000])
def test_a_refusal_does_not_hold_the_cell(server: RedisServer, node: Node, offset: int) -> None:
    """A slot's memory is given back when its last view is gone, not when garbage is collected."""
    node.put(key_of(1), payload(100_000), Codec.PLANES_LZ4)
    server.call("SET", name_of(key_of(1)), changed(server.call("GET", name_of(key_of(1))), offset))
    there = wanted(key_of(1), 100_000)
    cell = weakref.ref(there.cell)
    gc.disable()
    try:
        [fetched] = node.blocks.fetch(IDENTITY, [there], soon())
        del there
        assert isinstance(fetched, SealError)
        assert cell() is None
    finally:
        gc.enable()


# What is deleted is gone, and nothing else.


def test_deleted_blocks_are_gone(node: Node) -> None:
    keys = [key_of(number) for number in range(3)]
    for key in keys:
        node.put(key, payload(3 * MIB))
    hashes = [key.block_hash for key in keys]
    assert node.blocks.delete(IDENTITY, LANE, [*hashes[:2], bytes(32)], soon()) == 2
    assert node.blocks.exist(IDENTITY, LANE, hashes, soon()) == [False, False, True]
    assert node.take(keys[0], 3 * MIB) is None
    assert node.takes(keys[2], payload(3 * MIB))


def test_all_blocks_of_a_generation_are_deleted_and_no_others(
    server: RedisServer, node: Node
) -> None:
    keys = [key_of(number, Lane(number % 2, 0)) for number in range(100)]
    for key in keys:
        node.put(key, payload(100))
    large = key_of(200)
    node.put(large, payload(5 * MIB))
    for identity in (NAMESPACE, GENERATION):
        node.blocks.store(identity, large, payload(5 * MIB), Codec.NONE, soon())
    server.call("SET", "test:1", "of somebody else")
    assert node.blocks.delete_all(IDENTITY, soon()) == 101
    assert server.call("DBSIZE") == 2 * 3 + 1
    assert node.take(large, 5 * MIB) is None
    for identity in (NAMESPACE, GENERATION):
        there = [wanted(large, 5 * MIB)]
        assert node.blocks.fetch(identity, there, soon()) == [large]
    assert node.blocks.delete_all(IDENTITY, soon()) == 0


# What goes wrong is told in time.


def test_a_server_that_stops_costs_the_deadline(own_server: RedisServer, own_node: Node) -> None:
    key, block = key_of(1), payload(5 * MIB)
    own_node.put(key, block, Codec.PLANES_LZ4)
    assert own_node.takes(key, block)
    blocks, hashes = own_node.blocks, [key.block_hash]
    calls: list[Callable[[float], object]] = [
        lambda deadline: blocks.exist(IDENTITY, LANE, hashes, deadline),
        lambda deadline: blocks.store(IDENTITY, key, block, Codec.NONE, deadline),
        lambda deadline: blocks.delete(IDENTITY, LANE, hashes, deadline),
        lambda deadline: blocks.delete_all(IDENTITY, deadline),
    ]
    own_server.pause()
    for call in calls:
        started = time.monotonic()
        with pytest.raises(ClusterDownError) as raised:
            call(soon(0.2))
        assert raised.value.failure is Failure.TIMEOUT
        assert time.monotonic() - started < 0.4
    started = time.monotonic()
    there = [wanted(key_of(number), 5 * MIB) for number in range(3)]
    fetched = blocks.fetch(IDENTITY, there, soon(0.2))
    assert time.monotonic() - started < 0.4
    assert [type(each) for each in fetched] == [ClusterDownError] * 3
    own_server.resume()
    own_server.call("PING")  # by then it has carried out what nobody waited for
    own_node.put(key, block)
    assert own_node.takes(key, block)
    own_server.kill()
    for call in calls:
        with pytest.raises(ClusterDownError) as raised:
            call(soon())
        assert raised.value.failure is Failure.CONNECTION
    [gone] = blocks.fetch(IDENTITY, there[:1], soon())
    assert isinstance(gone, ClusterDownError)
    own_server.start()
    assert own_node.take(key, 5 * MIB) is None


def test_an_impossible_prefix_is_refused(node: Node) -> None:
    with pytest.raises(ValueError, match="letters"):
        ClusterBlocks(node.transport, PLAIN, key_prefix="a b", ttl_seconds=1)
