"""Connections that say nothing, nonsense or too much, and readers that take nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from random import Random

import grpc
import pytest

from kvtier import Client
from kvtier.access.role import Role
from kvtier.client.admin import AdminClient
from kvtier.testing import AgentProcess
from tests.access.agents import Callers, remote_agent
from tests.faults.agents import (
    descriptor_count,
    resident_bytes,
    running_agent,
)
from tests.faults.blocks import MIB, Verdict, hashes_of, judge, spec_of, store
from tests.faults.raw_streamer import RawStreamer, written
from tests.faults.raw_worker import attach_socket, keys_message
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until
from tests.fuzz.good_traffic import GoodTraffic
from tests.fuzz.senders import send_with

pytestmark = pytest.mark.faults

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_GARBAGE = [
    b"\0" * 9,
    b"\xff" * 4096,
    b"GET / HTTP/1.1\r\nHost: kvtier\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
    _PREFACE[:10],
    _PREFACE + b"\xff" * 64,
    _PREFACE + _SETTINGS + b"\x00\x40\x00\x01\x05\x00\x00\x00\x01" + b"\x82" * 16384,
    _PREFACE + _SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",  # a frame of 16 MiB
]
_HELLO = b'{"op":"attach","version":1,"client":"' + b"ab" * 16 + b'"}'
_LARGE = spec_of("large", 2 * MIB)


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    with running_agent("256MiB", streams__stall_seconds=2, leases__max_share=1.0) as running:
        yield running


@pytest.fixture
def traffic(agent: AgentProcess, request: pytest.FixtureRequest) -> Iterator[GoodTraffic]:
    with GoodTraffic(agent.address, "good") as good:
        good.goes_on()
        yield good
        good.goes_on()
        assert not good.errors


def _refusal(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code: grpc.StatusCode = caught.value.code()
    return code


def _newcomer_works(agent: AgentProcess) -> None:
    with Client(agent.address, timeout_seconds=5) as client:
        assert client.has_memory
        namespace = client.namespace(spec_of("newcomer"))
        assert store(namespace, "newcomer", 4) == 4
        assert judge(namespace, hashes_of("newcomer", 4)) == Verdict(right=4)


def _unix(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(5)
    peer.connect(str(path))
    return peer


@pytest.mark.parametrize("name", ["worker.sock", "admin.sock"])
def test_garbage_and_half_open_connections(
    agent: AgentProcess, traffic: GoodTraffic, name: str
) -> None:
    descriptors, memory = descriptor_count(agent.pid), resident_bytes(agent.pid)
    random = Random(name)
    with ExitStack() as stack:
        for number in range(times(300)):
            peer = stack.enter_context(closing(_unix(agent.directory / name)))
            garbage = random.choice([*_GARBAGE, random.randbytes(random.randint(1, 9000))])
            if number % 3:
                try:
                    peer.sendall(garbage)
                except (BrokenPipeError, ConnectionResetError):
                    continue
        traffic.goes_on()
        _newcomer_works(agent)
        assert resident_bytes(agent.pid) < memory + 64 * MIB
    wait_until(lambda: descriptor_count(agent.pid) <= descriptors + 16, 20)


@pytest.mark.parametrize("greeting", [b"", _PREFACE + _SETTINGS], ids=["silent", "idle"])
@pytest.mark.parametrize("listener", ["worker.sock", "admin.sock", "TCP"])
def test_connections_are_bounded_and_those_that_are_there_go_on(
    tmp_path: Path, listener: str, greeting: bytes
) -> None:
    """Two thousand, where workers may have 8 + 256 and operators 256."""
    callers = Callers()
    callers.add("worker", Role.WORKER, "*")
    with (
        remote_agent(tmp_path, callers, None, {"limits.max_sessions": 8}) as remote,
        GoodTraffic(remote.process.address, "good", "stream") as good,
        AdminClient(remote.process.admin_address, timeout_seconds=10) as admin,
    ):
        good.goes_on()
        admin.get_stats()
        process = remote.process
        descriptors = descriptor_count(process.pid)
        with ExitStack() as stack:
            for _ in range(2000):
                if listener == "TCP":
                    host, _, port = remote.address().rpartition(":")
                    peer = socket.create_connection((host, int(port)), timeout=5)
                else:
                    peer = _unix(process.directory / listener)
                stack.enter_context(closing(peer))
                with suppress(BrokenPipeError, ConnectionResetError):
                    peer.sendall(greeting)
            wait_until(lambda: descriptor_count(process.pid) <= descriptors + 270, 20)
            good.goes_on()
            admin.get_stats()
            assert descriptor_count(process.pid) >= descriptors + 200
        wait_until(lambda: descriptor_count(process.pid) <= descriptors + 8, 20)
        _newcomer_works(process)
        assert not good.errors


def test_who_connects_and_says_nothing_keeps_no_worker_out(
    agent: AgentProcess, traffic: GoodTraffic
) -> None:
    descriptors = descriptor_count(agent.pid)
    with ExitStack() as stack:
        for _ in range(times(1000)):
            stack.enter_context(closing(attach_socket(agent.directory)))
        _newcomer_works(agent)
        wait_until(lambda: descriptor_count(agent.pid) <= descriptors + 64 + 16, 10)
    wait_until(lambda: descriptor_count(agent.pid) <= descriptors + 8, 20)


def _ended_process() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    descriptor = os.pidfd_open(child)
    os.waitpid(child, 0)
    return descriptor


def _one_of(pair: Callable[[], tuple[int, int]]) -> int:
    mine, other = pair()
    os.close(other)
    return mine


def _socket_pair() -> tuple[int, int]:
    a, b = socket.socketpair()
    return a.detach(), b.detach()


#: Makes descriptors to be sent, by what is odd about them.
_ODD: dict[str, Callable[[], list[int]]] = {
    "none": list,
    "two": lambda: [os.pidfd_open(os.getpid()) for _ in range(2)],
    "as many as may be sent": lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(253)],
    "file": lambda: [os.open("/dev/zero", os.O_RDONLY)],
    "directory": lambda: [os.open("/", os.O_RDONLY)],
    "pipe": lambda: [_one_of(os.pipe)],
    "socket": lambda: [_one_of(_socket_pair)],
    "event": lambda: [os.eventfd(0)],
    "another process": lambda: [os.pidfd_open(os.getppid())],
    "ended process": lambda: [_ended_process()],
    "mapped memory": lambda: [os.memfd_create("odd")],
}


@pytest.mark.parametrize("odd", _ODD)
def test_odd_descriptors_are_refused_and_closed(agent: AgentProcess, odd: str) -> None:
    with closing(attach_socket(agent.directory)) as peer:
        send_with(peer, _HELLO, [])
        assert b"pidfd" in peer.recv(1 << 16)
    before = descriptor_count(agent.pid)
    for _ in range(times(100)):
        with closing(attach_socket(agent.directory)) as peer:
            send_with(peer, _HELLO, _ODD[odd]())
            answer = peer.recv(1 << 16)
            assert b'"error":"InvalidRequestError"' in answer, answer
            assert peer.recv(1 << 16) == b""
    wait_until(lambda: descriptor_count(agent.pid) <= before + 2, 10)
    _newcomer_works(agent)


def test_descriptors_after_attaching_are_dropped(agent: AgentProcess, traffic: GoodTraffic) -> None:
    with closing(attach_socket(agent.directory)) as peer:
        send_with(peer, _HELLO, [os.pidfd_open(os.getpid())])
        assert b'"op":"attached"' in peer.recv(1 << 16)
        before = descriptor_count(agent.pid)
        for _ in range(times(300)):
            kinds = [os.open("/dev/null", os.O_RDONLY) for _ in range(64)]
            send_with(peer, b'{"op":"unmapped","extents":[]}', kinds)
        wait_until(lambda: descriptor_count(agent.pid) <= before + 2, 10)
    _newcomer_works(agent)


def test_slow_readers_cost_little_and_are_ended(agent: AgentProcess, traffic: GoodTraffic) -> None:
    hashes = hashes_of("slowly read", 16)
    with AdminClient(agent.admin_address) as admin, RawStreamer(agent.directory) as raw:
        session = raw.open(_LARGE)
        assert set(raw.write(session, written(_LARGE, hashes))) <= {1, 3}
        memory = resident_bytes(agent.pid)
        streams = [raw.read(session, timeout=None, keys=keys_message(hashes)) for _ in range(12)]
        for each in streams:
            next(each)
        traffic.goes_on()
        _newcomer_works(agent)
        assert resident_bytes(agent.pid) < memory + 96 * MIB
        wait_until(lambda: admin.get_stats(_LARGE.label).lease_count == 0, 20)
        codes = {_refusal(partial(list, each)) for each in streams}
        assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
