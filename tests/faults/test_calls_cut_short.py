"""Calls that end in the middle, and calls that ask for much at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from kvtier import BlockStatus, Client
from kvtier.client.attachment import Attachment
from kvtier.client.connection import Connection
from kvtier.errors import AgentUnavailableError
from kvtier.v1 import block_cache_pb2 as pb
from tests.faults.agents import running_agent
from tests.faults.blocks import BLOCK_BYTES, Verdict, hashes_of, judge, spec_of, store
from tests.faults.raw_worker import RawWorker, keys_message
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults


class Interrupted(BaseException):
    """What a signal handler raises, as KeyboardInterrupt is raised."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_answer_to_an_interrupted_call_is_not_taken_for_the_next_ones() -> None:
    with running_agent("16MiB") as agent, Client(agent.address, timeout_seconds=5) as client:
        namespace = client.namespace(spec_of())
        assert store(namespace, "first", 4) == 4
        assert store(namespace, "second", 4) == 4
        agent.pause()
        try:
            with pytest.raises(Interrupted), interrupted_after(0.2):
                namespace.load(hashes_of("first", 4))
        finally:
            agent.resume()
        wait_until(lambda: client.is_connected, 5)
        assert judge(namespace, hashes_of("second", 4)) == Verdict(right=4)


def test_a_connection_that_was_given_up_takes_no_new_writers() -> None:
    with running_agent("16MiB") as agent:
        connection = Connection(agent.address, b"client of a test", 5)
        writer, late = object.__new__(Writer), object.__new__(Writer)
        connection.start_writing(writer)
        assert not connection.retire()
        connection.end_writing(writer)
        assert connection.retire()
        with pytest.raises(AgentUnavailableError):
            connection.start_writing(late)
        connection.close()


class Writer:
    """Something that may be forgotten."""


def test_groups_of_one_size_get_room_together() -> None:
    spec = replace(spec_of(), block_bytes=(BLOCK_BYTES, BLOCK_BYTES))
    with running_agent("16MiB") as agent, RawWorker(agent.directory) as worker:
        session = worker.open(spec)
        keys = [keys_message(hashes_of(f"group {group}", 40), group=group) for group in range(2)]
        answer = worker.call("ReserveBlocks", pb.ReserveBlocksRequest(keys=keys), session)
        assert set(answer.status) == {BlockStatus.OK}


def test_holds_yield_to_their_own_sessions_reservations() -> None:
    with (
        running_agent("16MiB", leases__max_share=0.5) as agent,
        Client(agent.address, timeout_seconds=5) as client,
    ):
        namespace = client.namespace(spec_of())
        count = (8 << 20) // BLOCK_BYTES
        assert store(namespace, "held", count) == count
        assert namespace.lookup(hashes_of("held", count), hold_seconds=10).hold_id
        assert store(namespace, "new", count) == count


def test_an_extent_is_mapped_once_however_many_threads_want_it() -> None:
    with (
        running_agent("16MiB") as agent,
        RawWorker(agent.directory) as worker,
        Client(agent.address) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        assert store(client.namespace(spec_of()), "stored", 4) == 4
        attachment = Attachment(str(agent.directory / "attach.sock"), bytes(16), 5)
        worker.token = attachment.token
        session = worker.open(spec_of())
        mapped = list(threads.map(lambda _: attachment.get(session, [1], 5)[1], range(16)))
        assert len({id(each) for each in mapped}) == 1
        attachment.close()
