"""Streams end at any moment, and leave nothing behind: no slot, no half of a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
import xxhash

from kvtier.agent.sessions.grants import LeaseLimits
from kvtier.core.block import BlockStatus
from kvtier.core.block_stream import Chunk, decode
from kvtier.core.lease import LeaseKind
from kvtier.errors import (
    AgentUnavailableError,
    InvalidRequestError,
    NoSharedMemoryError,
    SessionLostError,
)
from tests.model.node import Node
from tests.unit.agent.stream_worker import TTL_SECONDS, StreamWorker
from tests.unit.agent.worker import Worker, sequence

MIB = 1 << 20
LARGE = 2 * MIB + 100
BLOCKS = 5
OK, PRESENT, EXPIRED = BlockStatus.OK, BlockStatus.PRESENT, BlockStatus.EXPIRED


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(40 * MIB, LeaseLimits(max_share=1.0))
    yield node
    node.close()


@pytest.fixture
def worker(node: Node) -> Iterator[StreamWorker]:
    worker = StreamWorker(node, LARGE)
    yield worker
    worker.sessions.close()


def assert_nothing_is_kept(node: Node, worker: StreamWorker) -> None:
    node.settle()
    node.audit_at_rest()
    assert worker.size_class.referenced_slots == 0
    assert len(node.leases) == 0


def finish(node: Node, task: asyncio.Task[Any]) -> None:
    for _ in range(500):
        if task.done():
            return
        node.loop.turn()
    raise AssertionError("the stream does not end")


def some_turns(node: Node, count: int) -> None:
    for _ in range(count):
        node.loop.turn()
        node.audit()


# Sessions.


def test_a_session_lives_for_its_ttl_after_its_last_call(node: Node, worker: StreamWorker) -> None:
    session = worker.session
    namespace = session.namespace
    node.clock.advance(TTL_SECONDS - 1)
    node.settle()
    worker.sessions.renew(node.sessions.find(session.token))
    node.clock.advance(TTL_SECONDS - 1)
    node.settle()
    node.sessions.find(session.token)
    assert namespace.session_count == 1
    node.clock.advance(2)
    node.settle()
    with pytest.raises(SessionLostError):
        node.sessions.find(session.token)
    assert namespace.session_count == len(node.sessions) == 0
    worker.sessions.renew(session)  # a call that ends late does not bring it back
    assert namespace.session_count == 0


def test_the_end_of_a_session_ends_its_holds(node: Node, worker: StreamWorker) -> None:
    keys = sequence("held", BLOCKS)
    node.run(worker.write(keys))
    [(_, hold_id)] = node.run(node.loading.lookup(worker.session, [keys], hold_seconds=10))
    assert hold_id
    assert worker.size_class.referenced_slots == BLOCKS
    node.sessions.disconnect(worker.session.attachment)
    assert_nothing_is_kept(node, worker)


def test_a_stream_under_way_keeps_its_session(node: Node, worker: StreamWorker) -> None:
    keys = sequence("kept", BLOCKS)
    node.run(worker.write(keys))

    async def read_slowly() -> None:
        async with aclosing(worker.messages(keys)) as messages:
            async for message in messages:
                worker.take(message)
                node.clock.advance(TTL_SECONDS + 1)
                worker.sessions.expire()

    node.run(read_slowly())
    node.sessions.find(worker.session.token)
    assert all(worker.is_right(keys, key) for key in range(BLOCKS))


def test_sessions_with_shared_memory_have_no_streams(node: Node, worker: StreamWorker) -> None:
    attached = Worker(node)
    worker.session = attached.session
    for work in (worker.write(sequence("any", 1)), worker.read(sequence("any", 1))):
        with pytest.raises(NoSharedMemoryError):
            node.run(work)


# Reading.


def test_a_slow_reader_loses_its_leases_and_reads_on(node: Node, worker: StreamWorker) -> None:
    keys = sequence("slow", BLOCKS)
    node.run(worker.write(keys))

    async def read_slowly() -> list[int]:
        kept = []
        async with aclosing(worker.messages(keys)) as messages:
            async for message in messages:
                worker.take(message)
                node.clock.advance(node.limits.default_seconds + 1)
                node.grants.expire()
                kept.append(worker.size_class.referenced_slots)
        return kept

    [kept] = node.run(read_slowly())
    assert set(kept) == {0}
    assert worker.statuses == dict.fromkeys(range(BLOCKS), OK)
    assert all(worker.is_right(keys, key) for key in range(BLOCKS))
    assert_nothing_is_kept(node, worker)


def test_a_block_that_is_replaced_under_a_slow_reader_is_not_accepted(
    node: Node, worker: StreamWorker
) -> None:
    keys = sequence("replaced", BLOCKS)
    node.run(worker.write(keys))

    async def read_slowly() -> None:
        turn = 0
        async with aclosing(worker.messages(keys)) as messages:
            async for message in messages:
                worker.take(message)
                turn += 1
                if turn == 1:  # within the first block
                    node.clock.advance(node.limits.default_seconds + 1)
                    node.grants.expire()
                    for name in ("a", "b", "c", "d"):
                        await worker.write(sequence(name, BLOCKS))
                    await worker.write(keys)

    node.run(read_slowly())
    assert worker.statuses[0] == EXPIRED
    assert all(worker.is_right(keys, key) for key in worker.received)
    assert_nothing_is_kept(node, worker)


def test_a_reader_that_leaves_gives_its_leases_back(node: Node, worker: StreamWorker) -> None:
    keys = sequence("left", BLOCKS)
    node.run(worker.write(keys))

    async def read_some(count: int) -> None:
        async with aclosing(worker.messages(keys)) as messages:
            for _ in range(count):
                await anext(messages)

    for count in range(1, 8):
        node.run(read_some(count))
        assert_nothing_is_kept(node, worker)


def test_a_read_begins_at_any_block_and_offset(node: Node, worker: StreamWorker) -> None:
    keys = sequence("resumed", BLOCKS)
    node.run(worker.write(keys))
    node.run(worker.read(keys))
    whole = [worker.received[key] for key in range(BLOCKS)]

    async def first(index: int, offset: int) -> bytes:
        async with aclosing(worker.messages(keys, index=index, offset=offset)) as messages:
            message = await anext(messages)
            await anext(messages, None)
        return bytes(message)

    for index, offset in ((0, 1), (3, 0), (4, LARGE - 1), (2, MIB + 5)):
        [message] = node.run(first(index, offset))
        chunk = decode(message)
        assert (chunk.index, chunk.offset) == (index, offset)
        assert whole[index][offset:].startswith(bytes(chunk.data))
        if offset + len(chunk.data) == LARGE:
            assert chunk.digests == xxhash.xxh3_128_digest(whole[index])


def test_the_leases_of_a_stream_have_no_name_that_a_call_could_use(
    node: Node, worker: StreamWorker
) -> None:
    keys = sequence("hidden", BLOCKS)

    async def attack() -> int:
        tried = 0
        async with aclosing(worker.messages(keys)) as messages:
            async for _ in messages:
                for lease in list(node.leases):
                    node.grants.release_by_id(worker.session, lease.lease_id)
                    tried += 1
                    assert node.leases.is_active(lease)
                assert node.grants.renew(worker.session, [], 1) == []
        return tried

    node.run(worker.write(keys))
    assert node.run(attack())[0] > 0


# Writing.


def test_a_write_that_ends_anywhere_leaves_whole_blocks_or_nothing(
    node: Node, worker: StreamWorker
) -> None:
    for count in range(1, 16):
        keys = sequence(f"cut {count}", BLOCKS)
        chunks = list(worker.chunks(keys))[:count]
        is_whole = bool(chunks[-1].digests)

        async def broken(chunks: list[Chunk] = chunks) -> AsyncIterator[Chunk]:
            for chunk in chunks:
                yield chunk
            await asyncio.get_running_loop().create_future()

        task = node.loop.create_task(worker.write(keys, broken()))
        some_turns(node, 200)
        task.cancel()
        finish(node, task)
        assert_nothing_is_kept(node, worker)
        rows = worker.size_class.find_many(keys.lane, keys.hashes)
        node.run(worker.read(keys))
        assert all(worker.is_right(keys, key) for key, row in enumerate(rows) if row >= 0)
        if is_whole:  # politely ended: what is complete is stored
            node.run(worker.write(keys, chunks))
        else:
            with pytest.raises(InvalidRequestError, match="ended at offset"):
                node.run(worker.write(keys, chunks))
        complete = sum(len(chunk.statuses) for chunk in chunks)
        assert worker.size_class.find_many(keys.lane, keys.hashes).count(-1) == BLOCKS - complete
        [statuses] = node.run(worker.write(keys))
        assert statuses == [PRESENT] * complete + [OK] * (BLOCKS - complete)
        worker.received.clear()
        node.run(worker.read(keys))
        assert all(worker.is_right(keys, key) for key in range(BLOCKS))


def test_slots_stay_reserved_while_a_mover_still_writes(node: Node, worker: StreamWorker) -> None:
    node.mover.turns_before = 50
    keys = sequence("cancelled", BLOCKS)
    task = node.loop.create_task(worker.write(keys))
    for _ in range(300):
        if node.mover.queue_depth and worker.size_class.referenced_slots:
            break
        node.loop.turn()
    assert node.mover.queue_depth
    task.cancel()
    some_turns(node, 5)
    assert task.cancelled()
    assert worker.size_class.referenced_slots
    assert any(lease.kind is LeaseKind.RESERVATION for lease in node.leases)
    some_turns(node, 60)
    assert node.mover.queue_depth == 0
    assert_nothing_is_kept(node, worker)
    assert worker.size_class.find_many(keys.lane, keys.hashes) == [-1] * BLOCKS


def test_a_wrong_digest_or_a_flipped_bit_stores_nothing(node: Node, worker: StreamWorker) -> None:
    keys = sequence("flipped", 3)
    chunks = list(worker.chunks(keys))
    flipped = bytearray(chunks[1].data)
    flipped[77] ^= 4
    chunks[1].data = memoryview(bytes(flipped))
    chunks[-1].digests = bytes(16)
    [statuses] = node.run(worker.write(keys, chunks))
    mismatch = BlockStatus.DIGEST_MISMATCH
    assert statuses == [mismatch, OK, mismatch]
    assert worker.size_class.find_many(keys.lane, keys.hashes)[::2] == [-1, -1]
    assert_nothing_is_kept(node, worker)
    assert node.run(worker.write(keys)) == [[OK, PRESENT, OK]]


def test_of_two_writers_of_a_block_the_first_wins(node: Node, worker: StreamWorker) -> None:
    keys = sequence("twice", BLOCKS)
    answers = node.run(worker.write(keys), worker.write(keys))
    for pair in zip(*answers, strict=True):
        assert sorted(pair) == [OK, PRESENT]
    node.run(worker.read(keys))
    assert all(worker.is_right(keys, key) for key in range(BLOCKS))
    assert_nothing_is_kept(node, worker)


def test_what_is_revoked_under_way_is_not_stored(node: Node, worker: StreamWorker) -> None:
    keys = sequence("revoked", BLOCKS)

    async def invalidated() -> AsyncIterator[Chunk]:
        for number, chunk in enumerate(worker.chunks(keys)):
            yield chunk
            if number == 4:
                for lease in list(node.leases):
                    node.grants.revoke(lease)

    [statuses] = node.run(worker.write(keys, invalidated()))
    assert statuses == [EXPIRED] * BLOCKS
    assert worker.size_class.find_many(keys.lane, keys.hashes) == [-1] * BLOCKS
    assert_nothing_is_kept(node, worker)


def test_a_session_that_ends_ends_its_streams(node: Node, worker: StreamWorker) -> None:
    keys = sequence("ended", 12)  # more than one window

    async def ended() -> AsyncIterator[Chunk]:
        for number, chunk in enumerate(worker.chunks(keys)):
            yield chunk
            if number == 2:
                node.sessions.disconnect(worker.session.attachment)

    with pytest.raises(SessionLostError):
        node.run(worker.write(keys, ended()))
    assert_nothing_is_kept(node, worker)


def test_a_drained_agent_ends_streams_at_the_next_window(node: Node, worker: StreamWorker) -> None:
    keys = sequence("drained", 12)

    async def drained() -> AsyncIterator[Chunk]:
        for chunk in worker.chunks(keys):
            yield chunk
            worker.lifecycle.is_draining = True

    with pytest.raises(AgentUnavailableError):
        node.run(worker.write(keys, drained()))
    assert_nothing_is_kept(node, worker)


def test_messages_out_of_order_are_refused(node: Node, worker: StreamWorker) -> None:
    keys = sequence("order", 3)
    chunks = list(worker.chunks(keys))
    beyond = Chunk(3, 0, memoryview(b"x"))
    for wrong in (
        chunks[1:],
        [chunks[0], chunks[2]],
        [chunks[0], chunks[0]],
        [chunks[0], chunks[3]],
        [*chunks[:3], chunks[0]],
        [beyond],
    ):
        with pytest.raises(InvalidRequestError, match="index"):
            node.run(worker.write(keys, wrong))
        assert_nothing_is_kept(node, worker)


def test_keys_may_be_jumped_over(node: Node, worker: StreamWorker) -> None:
    keys = sequence("jumped", BLOCKS)
    for indexes, expected in (((0, 1), [OK, OK, 0, 0, 0]), ((2,), [0, 0, OK, 0, 0])):
        chunks = [chunk for chunk in worker.chunks(keys) if chunk.index in indexes]
        [statuses] = node.run(worker.write(keys, chunks))
        assert statuses == expected
    assert_nothing_is_kept(node, worker)


def test_streams_lease_and_send_one_at_a_time(
    node: Node, worker: StreamWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn of the loop is as long as one of these, however many streams there are."""
    keys = sequence("turns", BLOCKS)
    node.run(worker.write(keys))
    lease, done = worker.reading._lease, 0

    async def counted(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        return await lease(*arguments)

    async def read() -> None:
        nonlocal done
        async for _ in worker.messages(keys):
            done += 1

    monkeypatch.setattr(worker.reading, "_lease", counted)
    tasks = [node.loop.create_task(read()) for _ in range(4)]
    in_turns = []
    while not all(task.done() for task in tasks):
        done = 0
        node.loop.turn()
        in_turns.append(done)
    assert sum(in_turns) > 4 * BLOCKS
    assert max(in_turns) == 1
