"""Whoever talks nonsense on the attach socket is cut off, and the agent goes on."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from kvtier import Client
from kvtier.testing import AgentProcess
from tests.faults.agents import descriptor_count, running_agent
from tests.faults.blocks import Verdict, hashes_of, judge, spec_of, store
from tests.faults.raw_worker import RawWorker, attach_socket
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults

_HELLO = {"op": "attach", "version": 1, "client": "ab" * 16}
_NONSENSE = [
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"{}",
    b'{"op": 7}',
    b"[" * 60000,
    b"9" * 5000,
    b"x" * (64 << 10),
    *(
        json.dumps(each).encode()
        for each in (
            {"op": "extents"},
            {"op": "unmapped", "extents": [1]},
            {"op": "fly"},
            {**_HELLO, "version": 2},
            {**_HELLO, "client": "ab"},
            {**_HELLO, "client": "zz" * 16},
            {**_HELLO, "client": 5},
            _HELLO,
        )
    ),
]


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    with running_agent("16MiB") as running:
        yield running


def _assert_cut_off(peer: socket.socket) -> None:
    """An error or nothing, then the end."""
    answer = b"x"
    while answer:
        try:
            answer = peer.recv(64 << 10)
        except ConnectionResetError:
            return
        assert not answer or json.loads(answer)["op"] in ("error", "attached")


def _assert_works(agent: AgentProcess) -> None:
    with Client(agent.address) as client:
        namespace = client.namespace(spec_of())
        assert store(namespace, "after", 4) == 4
        assert judge(namespace, hashes_of("after", 4)) == Verdict(right=4)


@pytest.mark.parametrize("data", _NONSENSE, ids=lambda data: str(data[:30]))
def test_nonsense_is_cut_off(agent: AgentProcess, data: bytes) -> None:
    with closing(attach_socket(agent.directory)) as peer:
        peer.send(data)
        _assert_cut_off(peer)
    _assert_works(agent)


def test_the_wrong_descriptors_are_cut_off(agent: AgentProcess) -> None:
    before = descriptor_count(agent.pid)
    reading, writing = os.pipe()
    other = os.pidfd_open(os.getppid())
    try:
        for wrong in ([reading], [other], [reading, writing], [writing] * 60):
            with closing(attach_socket(agent.directory)) as peer:
                socket.send_fds(peer, [json.dumps(_HELLO).encode()], wrong)
                _assert_cut_off(peer)
    finally:
        for fd in (reading, writing, other):
            os.close(fd)
    wait_until(lambda: descriptor_count(agent.pid) <= before, 2)


@pytest.mark.parametrize(
    "message",
    [
        {"op": "extents", "session": "00" * 16, "extents": [1]},
        {"op": "extents", "session": "00", "extents": [1]},
        {"op": "extents", "session": "00" * 16, "extents": list(range(64))},
        {"op": "extents", "session": "00" * 16, "extents": ["1"]},
        {"op": "unmapped", "extents": 5},
        {"op": "attach"},
        {"op": "fly"},
    ],
    ids=str,
)
def test_nonsense_after_attaching_is_cut_off(
    agent: AgentProcess, message: dict[str, object]
) -> None:
    with RawWorker(agent.directory) as worker:
        worker.open(spec_of())
        worker.socket.send(json.dumps(message).encode())
        _assert_cut_off(worker.socket)
    _assert_works(agent)


def test_a_session_of_another_worker_gives_no_extents(agent: AgentProcess) -> None:
    with RawWorker(agent.directory) as worker, RawWorker(agent.directory) as thief:
        token = worker.open(spec_of())
        message = {"op": "extents", "session": token.hex(), "extents": [1]}
        thief.socket.send(json.dumps(message).encode())
        data, descriptors, _, _ = socket.recv_fds(thief.socket, 64 << 10, 64)
        assert json.loads(data)["error"] == "AccessDeniedError"
        assert descriptors == []


def test_extents_of_other_namespaces_are_not_given(agent: AgentProcess) -> None:
    with Client(agent.address) as client:
        store(client.namespace(spec_of("secret")), "secret", 4)
    with RawWorker(agent.directory) as worker:
        token = worker.open(spec_of("empty"))
        message = {"op": "extents", "session": token.hex(), "extents": list(range(1, 60))}
        worker.socket.send(json.dumps(message).encode())
        data, descriptors, _, _ = socket.recv_fds(worker.socket, 64 << 10, 64)
        for fd in descriptors:
            os.close(fd)
        assert json.loads(data)["extents"] == []
        assert len(descriptors) == 1


def test_a_worker_that_does_not_read_is_cut_off(agent: AgentProcess) -> None:
    with RawWorker(agent.directory) as worker:
        token = worker.open(spec_of())
        data = json.dumps({"op": "extents", "session": token.hex(), "extents": []}).encode()
        worker.socket.settimeout(5)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            _send_for_ever(worker.socket, data)
    _assert_works(agent)


def _send_for_ever(peer: socket.socket, data: bytes) -> None:
    for _ in range(100_000):
        peer.send(data)
