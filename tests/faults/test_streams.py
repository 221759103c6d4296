"""Streams and real processes: slow, cut, killed, flipped, refused, restarted."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from kvtier import AsyncClient, BlockStatus, Client, Match
from kvtier.client.admin import AdminClient
from kvtier.errors import (
    AccessDeniedError,
    AgentUnavailableError,
    DeadlineExceededError,
    NoSharedMemoryError,
)
from kvtier.testing import AgentProcess
from kvtier.testing.worker_process import WorkerProcess
from kvtier.v1 import block_cache_pb2 as pb
from tests.crash.agents import disk_agent, restart
from tests.faults import scripts
from tests.faults.agents import promised_bytes, resident_bytes, running_agent, wait_until_free
from tests.faults.blocks import (
    MIB,
    Verdict,
    hashes_of,
    judge,
    payloads,
    spec_of,
    store,
    verdict_of,
)
from tests.faults.raw_streamer import RawStreamer, written
from tests.faults.raw_worker import RawWorker, keys_message
from tests.faults.repetitions import times
from tests.faults.unix_proxy import UnixProxy
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults

OK, DIGEST_MISMATCH = BlockStatus.OK, BlockStatus.DIGEST_MISMATCH
LARGE = spec_of("large", 2 * MIB)


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    """Leases end long after what tests wait for: what is given back, a stream has given back."""
    with running_agent("192MiB", leases__max_share=1.0, streams__stall_seconds=5) as running:
        yield running
        assert "Traceback" not in running.log, running.log[-3000:]


@pytest.fixture
def admin(agent: AgentProcess) -> Iterator[AdminClient]:
    with AdminClient(agent.admin_address) as each:
        yield each


@pytest.fixture
def client(agent: AgentProcess) -> Iterator[Client]:
    with Client(agent.address, timeout_seconds=5, transport="stream") as each:
        yield each


@pytest.fixture
def raw(agent: AgentProcess) -> Iterator[RawStreamer]:
    with RawStreamer(agent.directory) as each:
        yield each


@pytest.fixture
def proxy(agent: AgentProcess, tmp_path: Path) -> Iterator[UnixProxy]:
    with UnixProxy(tmp_path, agent.directory / "worker.sock") as each:
        yield each


def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), error.details()


# Slow readers and writers.


def test_slow_readers_keep_neither_slots_nor_memory() -> None:
    hashes = hashes_of("slow", 32)
    keys = keys_message(hashes)
    settings = {"leases__default_seconds": 0.5, "leases__max_share": 1.0}
    with (
        running_agent("192MiB", **settings, streams__stall_seconds=10) as agent,
        AdminClient(agent.admin_address) as admin,
        RawStreamer(agent.directory) as raw,
    ):
        session = raw.open(LARGE)
        assert raw.write(session, written(LARGE, hashes)) == [OK] * 32
        list(raw.read(session, keys=keys))
        before = resident_bytes(agent.pid)
        streams = [raw.read(session, timeout=None, keys=keys) for _ in range(8)]
        for each in streams:
            next(each)
        wait_until(lambda: promised_bytes(admin) > 0, 5)
        wait_until_free(admin, 5)  # they are not read: leases end by their TTL
        assert resident_bytes(agent.pid) - before < 8 * 8 * MIB

        def rest(stream: Any) -> int:
            return sum(list(message.status).count(OK) for message in stream)

        with ThreadPoolExecutor(len(streams)) as readers:  # who reads on gets the rest
            assert list(readers.map(rest, streams)) == [32] * len(streams)
        wait_until_free(admin, 5)


def test_a_reader_that_takes_nothing_is_ended() -> None:
    with (
        running_agent("64MiB", streams__stall_seconds=0.5, streams__max_streams=1) as agent,
        RawStreamer(agent.directory) as raw,
    ):
        session, hashes = raw.open(LARGE), hashes_of("stalled", 16)
        raw.write(session, written(LARGE, hashes))
        stream = raw.read(session, timeout=None, keys=keys_message(hashes))
        next(stream)
        wait_until(lambda: _reads(raw, session, keys_message(hashes)), 10)
        code, details = refusal(lambda: list(stream))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "took nothing for 0.5 s" in details


def test_a_writer_that_stops_is_ended_and_its_slots_are_free(
    admin: AdminClient, client: Client, raw: RawStreamer
) -> None:
    session, hashes = raw.open(LARGE), hashes_of("stopped", 4)
    go_on = threading.Event()

    def stopping() -> Iterator[Any]:
        for number, message in enumerate(written(LARGE, hashes)):
            yield message
            if number == 5:
                go_on.wait(20)

    future = raw.start_write(session, stopping())
    wait_until(lambda: promised_bytes(admin) > 0, 5)
    assert refusal(future.result)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    go_on.set()
    wait_until_free(admin, 5)
    assert client.namespace(LARGE).lookup(hashes, match=Match.PRESENCE).present == (False,) * 4


def test_a_cancelled_stream_gives_everything_back(admin: AdminClient, raw: RawStreamer) -> None:
    session, hashes = raw.open(LARGE), hashes_of("cancelled", 8)
    assert raw.write(session, written(LARGE, hashes)) == [OK] * 8
    for _ in range(times(20)):
        stream = raw.read(session, keys=keys_message(hashes))
        next(stream)
        stream.cancel()
        wait_until_free(admin, 0.9)


def test_cancelled_tasks_give_everything_back(agent: AgentProcess, admin: AdminClient) -> None:
    hashes = hashes_of("tasks", 16)
    blocks = np.stack(payloads(LARGE, hashes))

    async def cancel_often() -> None:
        async with AsyncClient(agent.address, timeout_seconds=5) as client:
            namespace = client.namespace(LARGE)
            for turn in range(times(40)):
                out = np.zeros_like(blocks)
                verb = namespace.load_into if turn % 2 else namespace.store
                task = asyncio.ensure_future(verb(hashes, out if turn % 2 else blocks))
                await asyncio.wait([task], timeout=0.002 * (turn % 10))
                task.cancel()
                await asyncio.wait([task])
            assert set(await namespace.store(hashes, blocks)) <= {OK, BlockStatus.PRESENT}
            out = np.zeros_like(blocks)
            assert await namespace.load_into(hashes, out) == [OK] * 16
            assert np.array_equal(out, blocks)

    asyncio.run(cancel_often())
    wait_until_free(admin, 0.9)


# Broken connections.


def test_a_client_killed_while_it_writes_leaves_nothing_half_written(
    agent: AgentProcess, admin: AdminClient, client: Client
) -> None:
    namespace = client.namespace(LARGE)
    for turn in range(times(10)):
        sequence = f"killed {turn}"
        with WorkerProcess(scripts.write_a_stream, agent.address, sequence, 24) as worker:
            worker.hear()
            wait_until(lambda: promised_bytes(admin) > 0, 5, 0.0005)
            worker.kill()
            assert worker.wait() == -9
        wait_until_free(admin, 2)
        hashes = hashes_of(sequence, 24)
        found = namespace.lookup(hashes, match=Match.PRESENCE).present
        assert judge(namespace, hashes) == Verdict(right=sum(found))


@pytest.mark.parametrize("count", [3 * MIB, 5 * MIB + 12345, 9 * MIB])
def test_a_broken_read_goes_on_where_it_ended(client: Client, proxy: UnixProxy, count: int) -> None:
    assert store(client.namespace(LARGE), "resumed", 12) == 12
    with Client(proxy.address, timeout_seconds=5, transport="stream") as broken:
        namespace = broken.namespace(LARGE)
        namespace.lookup(hashes_of("resumed", 12))
        proxy.cut_after(count)
        assert judge(namespace, hashes_of("resumed", 12)) == Verdict(right=12)
    assert proxy.connections == 2


def test_a_broken_write_goes_on_with_what_is_missing(client: Client, proxy: UnixProxy) -> None:
    with Client(proxy.address, timeout_seconds=5, transport="stream") as broken:
        namespace = broken.namespace(LARGE)
        namespace.lookup(hashes_of("rewritten", 1))
        proxy.cut_after(21 * MIB)
        assert store(namespace, "rewritten", 16) == 16
    assert proxy.connections == 2
    assert judge(client.namespace(LARGE), hashes_of("rewritten", 16)) == Verdict(right=16)


def test_blocks_on_disk_are_streamed(tmp_path: Path) -> None:
    sequences = [f"disk {number}" for number in range(5)]  # together more than HOST holds
    with disk_agent(tmp_path / "agent", host="64MiB", disk="256MiB") as agent:
        with (
            AdminClient(agent.admin_address) as admin,
            Client(agent.address, timeout_seconds=10, transport="stream") as client,
        ):
            for each in sequences:
                assert store(client.namespace(LARGE), each, 8) == 8
                admin.flush()
        agent.stop()
        restart(agent)
        with Client(agent.address, timeout_seconds=10, transport="stream") as client:
            for each in sequences:
                assert judge(client.namespace(LARGE), hashes_of(each, 8)) == Verdict(right=8)


def test_a_flipped_bit_on_the_way_is_found(client: Client, proxy: UnixProxy) -> None:
    hashes = hashes_of("flipped", 6)
    blocks = payloads(LARGE, hashes)
    with Client(proxy.address, timeout_seconds=5, transport="stream") as bad:
        namespace = bad.namespace(LARGE)
        proxy.flip(blocks[2][MIB : MIB + 64].tobytes())
        statuses = namespace.store(hashes, blocks)
        assert statuses == [OK, OK, DIGEST_MISMATCH, OK, OK, OK]
        assert not client.namespace(LARGE).lookup(hashes, match=Match.PRESENCE).present[2]
        assert namespace.store(hashes, blocks)[2] == OK
        proxy.flip(blocks[4][MIB : MIB + 64].tobytes())
        out = np.zeros((6, 2 * MIB), np.uint8)
        statuses = namespace.load_into(hashes, out)
        assert statuses == [OK, OK, OK, OK, DIGEST_MISMATCH, OK]
        assert verdict_of(LARGE, hashes, statuses, out) == Verdict(right=5)
        assert judge(namespace, hashes) == Verdict(right=6)


def test_a_hung_agent_costs_one_timeout_and_is_found_again(agent: AgentProcess) -> None:
    with Client(agent.address, timeout_seconds=0.5, transport="stream") as client:
        namespace = client.namespace(LARGE)
        assert store(namespace, "hung", 2) == 2
        agent.pause()
        try:
            with pytest.raises(DeadlineExceededError):
                judge(namespace, hashes_of("hung", 2))
            with pytest.raises(AgentUnavailableError):
                judge(namespace, hashes_of("hung", 2))
        finally:
            agent.resume()
        wait_until(lambda: client.is_connected, 5)
        assert judge(namespace, hashes_of("hung", 2)) == Verdict(right=2)


def test_clients_outlive_their_sessions_and_their_agent() -> None:
    with (
        running_agent("64MiB", streams__session_seconds=0.2) as agent,
        Client(agent.address, timeout_seconds=5, transport="stream") as client,
    ):
        spec, hashes = spec_of(), hashes_of("kept", 4)
        namespace = client.namespace(spec)

        async def live_on() -> None:
            async with AsyncClient(agent.address, timeout_seconds=5) as other:
                theirs = other.namespace(spec)
                assert await theirs.store(hashes, payloads(spec, hashes)) == [OK] * 4
                with AdminClient(agent.admin_address) as admin:
                    wait_until(lambda: not admin.list_sessions(), 5)
                assert (await theirs.lookup(hashes)).matched == 4
                assert judge(namespace, hashes) == Verdict(right=4)
                agent.kill()
                with pytest.raises(AgentUnavailableError):
                    await theirs.lookup(hashes)
                with pytest.raises(AgentUnavailableError):
                    namespace.lookup(hashes)
                agent.start()
                for _ in range(500):
                    try:
                        assert await theirs.store(hashes, payloads(spec, hashes)) == [OK] * 4
                        break
                    except AgentUnavailableError:
                        await asyncio.sleep(0.01)
                out = np.zeros((4, spec.block_bytes[0]), np.uint8)
                statuses = await theirs.load_into(hashes, out)
                assert verdict_of(spec, hashes, statuses, out) == Verdict(right=4)

        asyncio.run(live_on())
        wait_until(lambda: client.is_connected, 5)
        assert judge(namespace, hashes) == Verdict(right=4)


# Who may, and what is refused.


def test_a_client_that_cannot_attach_streams(
    agent: AgentProcess, proxy: UnixProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The proxy's directory has no attach socket, as a container that was given only one."""
    hashes = hashes_of("fallen back", 3)
    with Client(proxy.address, timeout_seconds=5) as client:
        assert not client.has_memory
        assert "streams instead of shared memory" in caplog.text
        namespace = client.namespace(LARGE)
        assert store(namespace, "fallen back", 3) == 3
        assert judge(namespace, hashes) == Verdict(right=3)
        with pytest.raises(NoSharedMemoryError, match="load_into and store"), client.attached():
            pass
        assert client.is_connected
    with Client(proxy.address, transport="memory") as client:
        assert not client.is_connected
    with Client(agent.address) as client:
        assert client.has_memory


@pytest.mark.parametrize(
    "settings", [{"workers": "[{uid: 12345}]"}, {"socket_group": 12345}], ids=["workers", "group"]
)
def test_where_others_may_connect_streams_have_to_be_allowed(settings: dict[str, Any]) -> None:
    hashes = hashes_of("any", 1)
    with (
        running_agent("16MiB", **settings) as agent,
        Client(agent.address, transport="stream") as client,
        pytest.raises(AccessDeniedError, match=r"streams\.tenants"),
    ):
        client.namespace(spec_of()).lookup(hashes)
    with (
        running_agent("16MiB", **settings, streams__tenants="[ours]") as agent,
        Client(agent.address, transport="stream") as client,
    ):
        assert client.namespace(spec_of(tenant="ours")).lookup(hashes).matched == 0
        with pytest.raises(AccessDeniedError, match=r"'theirs'.*streams\.tenants"):
            client.namespace(spec_of(tenant="theirs")).lookup(hashes)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_streams_what_it_may() -> None:
    """Who cannot attach falls back by itself, and learns of both reasons if that is refused."""
    stranger = 65534
    settings = {"socket_group": stranger, "streams__tenants": "[theirs]"}
    with running_agent("64MiB", **settings) as agent, Client(agent.address) as client:
        for tenant in ("theirs", "ours"):
            assert store(client.namespace(spec_of(tenant=tenant)), "secret", 4) == 4
        answers = []
        for tenant in ("theirs", "ours"):
            arguments = agent.address, stranger, tenant
            with WorkerProcess(scripts.connect_as, *arguments) as worker:
                answers.append(worker.hear())
    assert answers[0] == ["OK", 4]
    name, message = answers[1]
    assert name == "AccessDeniedError"
    assert f"uid {stranger}" in message
    assert "streams.tenants" in message


def test_many_threads_share_a_client(client: Client) -> None:
    namespace = client.namespace(LARGE)
    assert store(namespace, "threads", 4) == 4

    def load(_: int) -> Verdict:
        return judge(namespace, hashes_of("threads", 4))

    with ThreadPoolExecutor(4) as threads:
        verdicts = set(threads.map(load, range(times(40))))
    assert verdicts == {Verdict(right=4)}


def test_slots_are_for_sessions_with_shared_memory_and_streams_for_those_without(
    agent: AgentProcess, raw: RawStreamer
) -> None:
    keys = keys_message(hashes_of("any", 1))
    session = raw.open(spec_of())
    for method, request in (
        ("LoadBlocks", pb.LoadBlocksRequest(keys=[keys], wait="ALL")),
        ("ReserveBlocks", pb.ReserveBlocksRequest(keys=[keys])),
        ("CommitBlocks", pb.CommitBlocksRequest(reservation_id=1)),
    ):
        code, details = refusal(lambda m=method, r=request: raw.call(m, r, session))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "no shared memory" in details
    with RawWorker(agent.directory) as attached:
        session = attached.open(spec_of())
        for call in (
            lambda: list(raw.read(session, keys=keys)),
            lambda: raw.write(session, [pb.WriteBlocksRequest(keys=keys)]),
        ):
            code, details = refusal(call)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "LoadBlocks" in details


def test_bad_streams_are_refused_with_what_is_wrong(raw: RawStreamer) -> None:
    spec, hashes = spec_of(), hashes_of("bad", 2)
    keys, session = keys_message(hashes), raw.open(spec)
    first = pb.WriteBlocksRequest(keys=keys)
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    for fields, word in (
        ({"keys": keys, "start_index": 2}, "start_index"),
        ({"keys": keys, "start_offset": spec.block_bytes[0]}, "start_offset"),
        ({"keys": keys, "wait": 9}, "wait"),
        ({}, "keys"),
    ):
        code, details = refusal(lambda f=fields: list(raw.read(session, **f)))
        assert (code, word in details) == (invalid, True), details
    for messages, word in (
        ([], "keys"),
        ([b"\xff"], "message"),
        ([pb.WriteBlocksRequest(data=b"x")], "keys"),
        ([first, first], "keys"),
        ([first, pb.WriteBlocksRequest(index=0)], "data"),
        ([first, pb.WriteBlocksRequest(data=b"x", digests=b"y")], "digests"),
        ([first, pb.WriteBlocksRequest(index=7, data=b"x")], "index"),
        ([first, pb.WriteBlocksRequest(offset=7, data=b"x")], "offset"),
        ([first, pb.WriteBlocksRequest(data=b"x")], "ended at offset"),
        ([first, bytes(pb.WriteBlocksRequest(data=bytes(MIB)).SerializeToString())], "at most"),
    ):
        code, details = refusal(lambda m=messages: raw.write(session, m))
        assert (code, word in details) == (invalid, True), details
    code, _ = refusal(lambda: raw.write(b"no such session!", [first]))
    assert code is grpc.StatusCode.ABORTED
    code, _ = refusal(lambda: list(raw.read(b"", keys=keys)))
    assert code is grpc.StatusCode.UNAUTHENTICATED


def test_so_many_streams_and_no_more() -> None:
    with (
        running_agent("64MiB", streams__max_streams=2, limits__max_session_share=1.0) as agent,
        RawStreamer(agent.directory) as raw,
    ):
        session, keys = raw.open(LARGE), keys_message(hashes_of("many", 16))
        raw.write(session, written(LARGE, hashes_of("many", 16)))
        streams = [raw.read(session, keys=keys) for _ in range(2)]
        for each in streams:
            next(each)
        code, details = refusal(lambda: list(raw.read(session, keys=keys)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "streams.max_streams" in details
        raw.call("TouchBlocks", pb.TouchBlocksRequest(keys=keys), session)
        streams[0].cancel()
        wait_until(lambda: _reads(raw, session, keys), 5)
        streams[1].cancel()


def _reads(raw: RawStreamer, session: bytes, keys: Any) -> bool:
    try:
        return len(list(raw.read(session, keys=keys))) > 0
    except grpc.RpcError:
        return False
