"""Mutated messages to all sockets of a live agent, while workers go on."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvtier import Client
from kvtier.client.admin import AdminClient
from kvtier.core import attach as protocol
from kvtier.core.block import Tier
from kvtier.core.status import Code
from kvtier.testing import AgentProcess
from tests.faults.agents import descriptor_count, resident_bytes, thread_count
from tests.faults.blocks import MIB, Verdict, hashes_of, judge, spec_of, store
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until
from tests.fuzz.good_traffic import GoodTraffic
from tests.fuzz.mutations import Mutator
from tests.fuzz.requests import BLOCK_CACHE, CACHE_ADMIN, Requests, is_greedy
from tests.fuzz.senders import AttachSender, GrpcSender

pytestmark = pytest.mark.faults

log = logging.getLogger(__name__)

_MESSAGES = 20_000
_CAPACITY = 64 * MIB
#: Beside gRPC's own: of calls that found their deadline, were cut off, or were no messages.
_LISTED = {0, *map(int, Code)} - {int(Code.INTERNAL)}
_GROWTH_BYTES = 96 * MIB
#: Operators' calls that end the work of others, or wait for long.
_LEFT_OUT = {"DrainAgent", "ScrubTier", "InvalidateNamespace"}
#: Of a direct call: its kind, and the milliseconds until its deadline.
_DEADLINE = slice(0, 5)
_OPERATIONS = ["attach", "extents", "unmapped", "fly"]


@contextmanager
def _agent(directory: Path) -> Iterator[AgentProcess]:
    settings = {
        "tiers.host.capacity": _CAPACITY,
        "tiers.disk.paths": directory / "disk",
        "tiers.disk.capacity": 2 * _CAPACITY,
        "limits.max_sessions": 256,
        "limits.max_namespaces": 24,
        "leases.max_share": 0.2,
        "tiers.host.memory_reserve": 0,
        "tiers.disk.min_free": 0,
    }
    with AgentProcess(directory, settings) as agent:
        yield agent


class _Fuzzer:
    """Sends so many messages over each socket."""

    def __init__(self, agent: AgentProcess, seed: int) -> None:
        self.random = Random(seed)
        self._mutator = Mutator(self.random)
        self._requests = Requests(self.random)
        self._agent = agent

    def grpc(self, count: int) -> Counter[int]:
        """Over worker.sock and admin.sock; the codes."""
        answers = []
        for name, service in (("worker.sock", BLOCK_CACHE), ("admin.sock", CACHE_ADMIN)):
            methods = [each for each in service.methods if each.name not in _LEFT_OUT]
            with GrpcSender(self._agent.directory / name) as sender:
                session = b""
                if service is BLOCK_CACHE:
                    self._requests.attach_token = b""
                    opened = service.methods_by_name["OpenSession"]
                    request = self._requests.of("OpenSession")
                    session = sender.ask(opened, b"", request).session_token
                for _ in range(count // 2):
                    method = self.random.choice(methods)
                    data = self._mutator.request(self._requests.of(method.name))
                    if not is_greedy(method.name, data):
                        sender.send(method, session, data)
            answers += sender.answers
        wrong = [each for each in answers if each[1] not in _LISTED]
        assert not wrong, wrong[:5]
        return Counter(code for _, code, _ in answers)

    def packets(self, count: int) -> Counter[int | None]:
        """Over attach.sock: direct calls, and the protocol's own messages."""
        answers: Counter[int | None] = Counter()
        methods = [
            each
            for each in BLOCK_CACHE.methods
            if not (each.client_streaming or each.server_streaming)
        ]
        with AttachSender(self._agent.directory, self.random) as sender:
            session = b""
            for _ in range(count):
                sender.attached()
                if self._requests.attach_token != sender.token or not session:
                    self._requests.attach_token = sender.token
                    session = self._session(sender)
                if self.random.random() < 0.2:
                    packet = self._mutator.bytes_of(self._message(session))
                else:
                    packet = self._call(self.random.choice(methods).name, session)
                code = sender.send(packet[: protocol.MAX_MESSAGE_BYTES])
                answers[code] += 1
                assert code in _LISTED | {None, protocol.TOO_LARGE}, (code, packet[:2000])
        return answers

    def _session(self, sender: AttachSender) -> bytes:
        with GrpcSender(self._agent.directory / "worker.sock") as opener:
            method = BLOCK_CACHE.methods_by_name["OpenSession"]
            answer = opener.ask(method, b"", self._requests.of("OpenSession"))
        token: bytes = answer.session_token
        return token

    def _call(self, method: str, session: bytes) -> bytes:
        data = self._mutator.request(self._requests.of(method))
        packet = protocol.encode_call(protocol.DirectCall(method, session, 200, data))
        if self.random.random() > 0.1:
            return packet
        # The deadline stays: with another one a call may wait for as long as it likes.
        return packet[_DEADLINE] + self._mutator.bytes_of(packet[_DEADLINE.stop :])

    def _message(self, session: bytes) -> bytes:
        """One of the protocol, most of them nearly right."""
        number: Any = self.random.choice([0, 1, 2, -1, 1 << 70, 1.5, None, "1", [], {}])
        message = {
            "op": self.random.choice(_OPERATIONS),
            "session": self.random.choice([session.hex(), "00" * 16, number]),
            "extents": self.random.choice([[number], [1, 2], list(range(64)), number]),
        }
        return json.dumps(message).encode()


def _restore(agent: AgentProcess) -> None:
    """Whatever operators did: it takes work, and has its size again."""
    with AdminClient(agent.admin_address) as admin:
        admin.resume()
        admin.resize_tier(Tier.HOST, _CAPACITY)


def _works(agent: AgentProcess) -> None:
    """As on the first day."""
    with Client(agent.address) as client:
        namespace = client.namespace(spec_of("good"))  # there may be no others
        wait_until(lambda: store(namespace, "afterwards", 4) == 4, 10)
        assert judge(namespace, hashes_of("afterwards", 4)) == Verdict(right=4)


@pytest.mark.timeout(900)
def test_mutated_messages_disturb_nobody(tmp_path: Path) -> None:
    count = times(_MESSAGES)
    with _agent(tmp_path) as agent:
        fuzzer = _Fuzzer(agent, seed=7)
        with (
            GoodTraffic(agent.address, "good") as near,
            GoodTraffic(agent.address, "far", "stream") as far,
        ):
            near.goes_on()
            far.goes_on()
            fuzzer.grpc(count // 10)
            fuzzer.packets(count // 10)
            memory, descriptors = resident_bytes(agent.pid), descriptor_count(agent.pid)
            codes = fuzzer.grpc(count // 2)
            _restore(agent)
            packets = fuzzer.packets(count // 2)
            _restore(agent)
            near.goes_on()
            far.goes_on()
        log.info("codes %s, packets %s, errors %s %s", codes, packets, near.errors, far.errors)
        assert codes[Code.INVALID_ARGUMENT] > count // 20
        assert packets[int(Code.INVALID_ARGUMENT)] > count // 20
        assert packets[None] > count // 100
        assert "incident" not in agent.log
        assert "Traceback" not in agent.log
        _works(agent)
        wait_until(lambda: descriptor_count(agent.pid) <= descriptors + 64, 10)
        wait_until(lambda: resident_bytes(agent.pid) < memory + _GROWTH_BYTES, 10)
        assert thread_count(agent.pid) < 60
