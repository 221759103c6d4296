"""Mutated requests to every method, in this process: no bug, no leak, and books that agree."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from kvtier.agent.sessions.sessions import Access
from kvtier.core.status import Code
from tests.faults.agents import descriptor_count, resident_bytes
from tests.faults.blocks import MIB
from tests.faults.repetitions import times
from tests.fuzz.agent_inside import AgentInside, agent_inside
from tests.fuzz.mutations import Mutator
from tests.fuzz.requests import BLOCK_CACHE, CACHE_ADMIN, Requests, is_greedy

pytestmark = pytest.mark.faults

log = logging.getLogger(__name__)

_MESSAGES = 100_000
_AUDIT_EVERY = 1000
_GROWTH_BYTES = 96 * MIB
#: They wait for what never comes here, each for a moment.
_SLOW = {"RecordRequests", "ScrubTier", "WatchStats", "DrainAgent", "FlushTier"}
_SLOW_SHARE = 0.002
_EVERYBODY = Access(frozenset({"*"}))
_SERVICES = (BLOCK_CACHE, CACHE_ADMIN)
_ME = os.getpid()
_LISTED = {0, *Code} - {Code.INTERNAL}


class _Fuzzer:
    """Calls one agent from two sessions, one of them with shared memory."""

    def __init__(self, inside: AgentInside, seed: int) -> None:
        self.random = Random(seed)
        self.answers: Counter[tuple[str, int]] = Counter()
        self._inside = inside
        self._mutator = Mutator(self.random)
        self._requests = Requests(self.random)
        self._sessions = [b"no such session."]
        methods = [(each.full_name, method.name) for each in _SERVICES for method in each.methods]
        self._fast = [each for each in methods if each[1] not in _SLOW]
        self._slow = [each for each in methods if each[1] in _SLOW]

    async def open(self) -> None:
        sessions = self._inside.agent.sessions
        attachment = sessions.attach(bytes(16), 0, 0, 1, _EVERYBODY)
        for token in (attachment.token, b""):
            self._requests.attach_token = token
            request = self._requests.of("OpenSession").SerializeToString()
            code, answer = await self._inside.call(
                BLOCK_CACHE.full_name, "OpenSession", b"", request
            )
            assert code == 0
            self._sessions.append(answer.session_token)

    async def step(self) -> None:
        is_slow = self.random.random() < _SLOW_SHARE
        service, method = self.random.choice(self._slow if is_slow else self._fast)
        session = self._sessions[min(self.random.randrange(20), 2)]
        data = self._mutator.request(self._requests.of(method))
        if is_greedy(method, data):
            return
        code, answer = await self._inside.call(service, method, session, data)
        self._requests.note(answer)
        self.answers[method, code] += 1
        assert code in _LISTED, (method, code, data[:2000])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1])
def test_no_request_is_a_bug(tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)

    async def run() -> Counter[tuple[str, int]]:
        async with agent_inside(tmp_path) as inside:
            fuzzer = _Fuzzer(inside, seed)
            await fuzzer.open()
            memory = descriptors = 0
            for number in range(times(_MESSAGES)):
                await fuzzer.step()
                if number % _AUDIT_EVERY == 0:
                    await inside.restore()
                    inside.audit()
                if number == times(_MESSAGES) // 2:
                    memory, descriptors = resident_bytes(_ME), descriptor_count(_ME)
            assert resident_bytes(_ME) < memory + _GROWTH_BYTES
            assert descriptor_count(_ME) < descriptors + 64
            return fuzzer.answers

    answers = asyncio.run(run())
    methods = {method for method, _ in answers}
    assert methods == {method.name for each in _SERVICES for method in each.methods}
    log.info("%s", answers)
    for method in methods - _SLOW - {"ResumeAgent", "GetCapabilities", "DrainAgent"}:
        assert answers[method, Code.INVALID_ARGUMENT] > 0, method
    assert not [each for each in caplog.records if "incident" in each.getMessage()]
