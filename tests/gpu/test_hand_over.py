"""Handles of a device's memory are made off the loop, whatever becomes of extents and workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvtier.agent.sessions.sessions import Attachment
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.testing import LateAccelerator
from kvtier.tiers.device import DeviceMemory
from tests.faults.blocks import Verdict, hashes_of, spec_of, store
from tests.faults.raw_worker import RawWorker
from tests.faults.waiting import wait_until
from tests.gpu.node import GpuNode, load, running_node, worker

_DEADLINE_SECONDS = 20.0
_COUNT = 32


class Slow(LateAccelerator):
    """Its handles are made when `may_share` is set."""

    def __init__(self) -> None:
        super().__init__(delay_seconds=0.0)
        self.may_share = threading.Event()
        self.making = 0

    def allocate(self, slots: int, slot_bytes: int) -> DeviceMemory:
        memory = super().allocate(slots, slot_bytes)
        handle = memory.handle

        def handle_later() -> tuple[list[int], list[str | int]]:
            self.making += 1
            assert self.may_share.wait(_DEADLINE_SECONDS)
            return handle()

        memory.handle = handle_later  # type: ignore[method-assign]
        return memory

    def close(self) -> None:
        self.may_share.set()
        super().close()


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def node(slow: Slow) -> Iterator[GpuNode]:
    with running_node({"cpu": slow}) as node:
        yield node


def bring(node: GpuNode, name: str = "a") -> None:
    """A sequence that is on the device, by a worker that maps nothing of it."""
    with worker(node) as namespace:
        assert store(namespace, name, _COUNT) == _COUNT
        assert load(namespace, hashes_of(name, _COUNT)) == Verdict(_COUNT)
    node.settle()
    assert node.stats().block_count >= _COUNT


def test_the_loop_goes_on_while_a_handle_is_made(node: GpuNode, slow: Slow) -> None:
    bring(node)
    hashes = hashes_of("a", _COUNT)
    with worker(node) as first, worker(node) as second, ThreadPoolExecutor(1) as threads:
        loading = threads.submit(load, first, hashes)
        wait_until(lambda: slow.making, _DEADLINE_SECONDS)
        assert second.lookup(hashes).matched == _COUNT
        assert not loading.done()
        slow.may_share.set()
        assert loading.result() == Verdict(_COUNT)
        assert node.stats().hit_count == _COUNT


def test_a_handle_waits_for_no_copy(node: GpuNode, slow: Slow) -> None:
    slow.may_share.set()
    bring(node)
    slow.is_held = True
    with worker(node) as namespace:
        for name in ("b", "c", "d"):
            store(namespace, name, 8)
            load(namespace, hashes_of(name, 8))
        wait_until(lambda: slow.under_way == 2, _DEADLINE_SECONDS)
        assert load(namespace, hashes_of("a", _COUNT)) == Verdict(_COUNT)
        assert node.stats().hit_count == _COUNT
        slow.is_held = False


def test_an_extent_that_goes_while_its_handle_is_made_is_not_given(
    node: GpuNode, slow: Slow
) -> None:
    """It is closed when its handle is made, and no sooner: its descriptor would be another's."""
    bring(node)
    device, namespace = node.device, next(iter(node.agent.namespaces))
    size_class = namespace.devices[0][0]
    extents: list[Any] = list(size_class.extents)
    with (
        worker(node) as verbs,
        verbs._client.attached() as connection,
        ThreadPoolExecutor(1) as threads,
        AdminClient(node.admin_address) as admin,
    ):
        token = connection.session(spec_of(), "", 5.0)
        getting = threads.submit(
            connection._attachment.get, token, [each.extent_id for each in extents], 20.0
        )
        wait_until(lambda: slow.making, _DEADLINE_SECONDS)
        admin.evict_blocks(namespace.label, tiers=[Tier.GPU])

        def give_up() -> None:
            for each in extents:
                size_class.withdraw(each)

        node.run(give_up)
        wait_until(lambda: node.run(lambda: not size_class.extents), _DEADLINE_SECONDS)
        [holder] = {
            each for extent in extents for each in extent.holders if isinstance(each, Attachment)
        }
        node.run(lambda: device.slots.arena.forget_holder(holder))  # as if its process had ended
        assert all(each.memory is not None for each in extents)
        slow.may_share.set()
        assert getting.result() == {}
        wait_until(lambda: not slow.allocated_bytes, _DEADLINE_SECONDS)


class Unshareable(LateAccelerator):
    """As a driver without IPC, or an allocator whose memory cannot be exported."""

    def allocate(self, slots: int, slot_bytes: int) -> DeviceMemory:
        memory = super().allocate(slots, slot_bytes)

        def handle() -> tuple[list[int], list[str | int]]:
            raise OSError("the driver shares nothing")

        memory.handle = handle  # type: ignore[method-assign]
        return memory


def test_what_the_agent_cannot_share_comes_from_host(caplog: pytest.LogCaptureFixture) -> None:
    with running_node({"cpu": Unshareable()}) as node:
        bring(node)
        with worker(node) as namespace:
            for _ in range(3):
                assert load(namespace, hashes_of("a", _COUNT)) == Verdict(_COUNT)
        told = [each.message for each in caplog.records if "from HOST, not from" in each.message]
        assert len(told) == 1
        assert "the agent cannot share it: the driver shares nothing" in told[0]


def test_who_asks_again_before_the_answer_is_cut_off(node: GpuNode, slow: Slow) -> None:
    bring(node)
    [namespace] = node.agent.namespaces
    ids = [each.extent_id for each in namespace.devices[0][0].extents]
    with RawWorker(Path(node.address.removeprefix("unix:")).parent) as raw:
        session = raw.open(spec_of())
        raw.socket.send(json.dumps({"op": "device", "device": "cpu"}).encode())
        assert json.loads(raw.socket.recv(4096)) == {"op": "device", "device": 1}
        question = {"op": "device_extents", "session": session.hex(), "extents": ids}
        for _ in range(2):
            raw.socket.send(json.dumps(question).encode())
        answer = json.loads(raw.socket.recv(4096))
        assert answer["op"] == "error"
        assert "before the last one was answered" in answer["message"]
        assert raw.socket.recv(4096) == b""
        slow.may_share.set()
        node.settle()
