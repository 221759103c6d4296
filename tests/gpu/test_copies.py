"""Copies on devices follow HOST: what is there, for whom, and for how long."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier import Client
from kvtier.client.admin import AdminClient
from kvtier.client.device import WorkerDevice
from kvtier.core.block import Tier
from kvtier.errors import InvalidRequestError
from kvtier.memory import ByteArray
from kvtier.testing import LateAccelerator
from kvtier.tiers.arena import HostExtent
from kvtier.tiers.device import DeviceMemory
from kvtier.v1 import cache_admin_pb2 as pb
from tests.faults.blocks import BLOCK_BYTES, Verdict, hashes_of, spec_of, store
from tests.faults.waiting import wait_until
from tests.gpu.node import GpuNode, load, running_node, worker

_DEADLINE_SECONDS = 20.0
_COUNT = 32


@pytest.fixture
def late() -> LateAccelerator:
    return LateAccelerator(delay_seconds=0.0)


@pytest.fixture
def node(late: LateAccelerator) -> Iterator[GpuNode]:
    with running_node({"cpu": late}) as node:
        yield node


@pytest.fixture
def admin(node: GpuNode) -> Iterator[AdminClient]:
    with AdminClient(node.admin_address) as client:
        yield client


def bring(node: GpuNode, name: str = "a", namespace: str = "model") -> None:
    """A sequence that HOST has and the device too."""
    with worker(node, namespace) as verbs:
        assert store(verbs, name, _COUNT) == _COUNT
        assert load(verbs, hashes_of(name, _COUNT)) == Verdict(_COUNT)
    node.settle()
    assert node.stats().block_count >= _COUNT


def label_of(node: GpuNode) -> str:
    [known] = node.agent.namespaces
    return known.label


# Leaving.


def test_what_leaves_host_leaves_the_device(late: LateAccelerator) -> None:
    with running_node({"cpu": late}, tiers__host__capacity="4MiB") as node:
        bring(node)
        with worker(node) as namespace:
            for number in range(8):
                store(namespace, f"other {number}", _COUNT)
            assert namespace.lookup(hashes_of("a", _COUNT)).matched == 0
            assert load(namespace, hashes_of("a", _COUNT)) == Verdict()
        assert node.stats().block_count == 0


def test_a_copy_is_evicted_alone(node: GpuNode, admin: AdminClient) -> None:
    bring(node)
    answer = admin.evict_blocks(label_of(node), tiers=[Tier.GPU])
    assert answer.evicted_count + answer.deferred_count == _COUNT
    assert node.stats().block_count == 0
    assert node.stats(Tier.HOST).block_count == _COUNT


def test_a_block_is_evicted_with_its_copy(node: GpuNode, admin: AdminClient) -> None:
    bring(node)
    answer = admin.evict_blocks(label_of(node), hashes_of("a", 1))
    assert answer.evicted_count + answer.deferred_count == 2 * _COUNT
    assert node.stats().block_count == node.stats(Tier.HOST).block_count == 0


def test_an_invalidation_takes_copies_along(node: GpuNode, admin: AdminClient) -> None:
    bring(node)
    admin.invalidate(label_of(node))
    assert node.stats().block_count == 0


def test_a_copy_lives_as_long_as_its_block(late: LateAccelerator) -> None:
    with running_node({"cpu": late}, namespaces='{"*": {ttl: 1.0}}') as node:
        bring(node)
        with worker(node) as namespace:
            hashes = hashes_of("a", _COUNT)
            wait_until(lambda: load(namespace, hashes) == Verdict(), _DEADLINE_SECONDS)


# Coming.


def test_what_the_policy_admits_comes(late: LateAccelerator) -> None:
    hashes = hashes_of("a", _COUNT)
    with (
        running_node({"cpu": late}, tiers__gpu__admission="second_hit") as node,
        worker(node) as namespace,
    ):
        store(namespace, "a", _COUNT)
        namespace.lookup(hashes)
        load(namespace, hashes)
        node.settle()
        assert node.stats().block_count == 0
        namespace.lookup([*hashes, *hashes_of("the end of another request", 1)])
        load(namespace, hashes)
        node.settle()
        assert node.stats().block_count == _COUNT


def test_the_policy_of_host_serves_a_device_too(late: LateAccelerator) -> None:
    with (
        running_node({"cpu": late}, tiers__gpu__policy="hd", device_capacity="4MiB") as node,
        worker(node) as namespace,
    ):
        for name in ("a", "b", "c", "d"):
            store(namespace, name, _COUNT)
            for _ in range(3):
                namespace.lookup(hashes_of(name, _COUNT))
                assert load(namespace, hashes_of(name, _COUNT)) == Verdict(_COUNT)
                node.settle()
        stats = node.stats()
    assert stats.hit_count >= 2 * _COUNT
    assert stats.block_count >= _COUNT


def test_a_sequence_too_long_for_the_device_keeps_its_beginning_there(
    late: LateAccelerator,
) -> None:
    with running_node({"cpu": late}, device_capacity="4MiB") as node, worker(node) as namespace:
        hashes = hashes_of("a", 200)
        store(namespace, "a", 200)
        for _ in range(4):
            assert load(namespace, hashes) == Verdict(200)
            node.settle()
        count = node.stats().block_count
        assert 32 <= count < 64
        before = node.stats()
        assert load(namespace, hashes[:count]) == Verdict(count)
        assert node.stats().hit_count - before.hit_count == count
        assert node.stats().evicted_count == 0, "the end made no room by the beginning"


# For whom.


def test_a_worker_without_a_device_gets_hosts_slots(node: GpuNode) -> None:
    bring(node)
    with (
        Client(node.address, transport="memory") as client,
        client.namespace(spec_of()).load(hashes_of("a", _COUNT)) as loaded,
    ):
        assert all(isinstance(view, np.ndarray) for view in loaded.views)
    assert node.stats().hit_count == 0


def test_a_worker_on_another_device_gets_hosts_slots(late: LateAccelerator) -> None:
    late.identity = "cuda:of-somebody-else"
    with running_node({"cpu": late}) as node, worker(node) as namespace:
        store(namespace, "a", _COUNT)
        for _ in range(2):
            assert load(namespace, hashes_of("a", _COUNT)) == Verdict(_COUNT)
            node.settle()
        assert node.stats().stored_count == 0


class Unreadable(LateAccelerator):
    """Its memory cannot be opened by workers."""

    def allocate(self, slots: int, slot_bytes: int) -> DeviceMemory:
        memory = super().allocate(slots, slot_bytes)
        memory.handle = lambda: ([], ["no handle"])  # type: ignore[method-assign]
        return memory


def test_a_worker_that_cannot_open_a_handle_gets_hosts_slots(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running_node({"cpu": Unreadable()}) as node, worker(node) as namespace:
        store(namespace, "a", _COUNT)
        for _ in range(3):
            assert load(namespace, hashes_of("a", _COUNT)) == Verdict(_COUNT)
            node.settle()
        assert node.stats().block_count == _COUNT
        assert node.stats(Tier.HOST).hit_count >= 3 * _COUNT
        with Client(node.address, transport="memory") as other:  # the connection goes on as well
            assert load(other.namespace(spec_of()), hashes_of("a", _COUNT)) == Verdict(_COUNT)
    told = [each for each in caplog.records if "from HOST, not from the device" in each.message]
    assert len(told) == 1


def test_each_device_has_its_own_copies() -> None:
    accelerators = {"cpu": LateAccelerator(), "fake:1": LateAccelerator()}
    accelerators["fake:1"].identity = "fake:one"
    with running_node(accelerators) as node:
        bring(node)
        with Client(node.address, transport="memory") as client:
            other = WorkerDevice("cpu")
            other.identity = "fake:one"
            with client.attached() as connection:
                connection.use_device(other, 5.0)
            namespace = client.namespace(spec_of())
            for _ in range(2):
                assert load(namespace, hashes_of("a", 8)) == Verdict(8)
                node.settle()
        with AdminClient(node.admin_address) as admin:
            first, second, host = admin.get_stats().tiers
        assert (first.block_count, second.block_count, host.block_count) == (_COUNT, 8, _COUNT)
        assert (first.hit_count, second.hit_count) == (0, 8)


def test_one_namespace_never_maps_anothers_extents(node: GpuNode) -> None:
    bring(node, namespace="mine")
    bring(node, namespace="yours")
    with Client(node.address, device="cpu", transport="memory") as client:
        with client.namespace(spec_of("mine")).load(hashes_of("a", 4)):
            mine = node.run(lambda: [each.namespace_id for each in node.agent.namespaces])
        with client.attached() as connection:
            token = connection.session(spec_of("mine"), "", 5.0)
            [_, yours] = node.agent.namespaces
            ids = [each.extent_id for each in yours.devices[0][0].extents]
            assert ids
            assert mine
            assert connection._attachment.get(token, ids, 5.0) == {}


# What is seen.


def test_what_a_device_has_is_shown(node: GpuNode, admin: AdminClient) -> None:
    bring(node)
    first, second = admin.get_stats().tiers
    assert (int(first.tier), int(second.tier)) == (Tier.GPU, Tier.HOST)
    assert (first.device, second.device) == ("late (fake)", "")
    assert first.state == pb.TierStats.ACTIVE
    assert first.used_bytes == _COUNT * BLOCK_BYTES <= first.allocated_bytes <= 16 << 20
    [info] = admin.list_namespaces()
    [copies] = info.copies
    assert (copies.device, copies.block_count) == ("late (fake)", _COUNT)
    assert copies.used_bytes == info.used_bytes[0] == _COUNT * BLOCK_BYTES
    explained = admin.explain_blocks(label_of(node), hashes_of("a", 1)).explanations[0]
    assert list(map(int, explained.tiers)) == [Tier.GPU, Tier.HOST]
    [listed] = admin.list_blocks(pb.ListBlocksRequest(namespace=label_of(node), page_size=1)).blocks
    assert (int(listed.tier), list(map(int, listed.other_tiers))) == (Tier.HOST, [Tier.GPU])


def test_metrics_add_up_the_devices(late: LateAccelerator) -> None:
    others = {"fake:1": LateAccelerator(), "fake:2": LateAccelerator(1)}
    others["fake:1"].identity = "fake:one"
    with running_node({"cpu": late, **others}, metrics__address="127.0.0.1:0") as node:
        bring(node)
        with worker(node) as namespace:
            assert load(namespace, hashes_of("a", 4)) == Verdict(4)
        with AdminClient(node.admin_address) as admin:
            admin.invalidate(label_of(node))
        assert node.agent.metrics is not None
        values = node.do(node.agent.metrics.collector.collect()).values
    mine = ("gpu", "default/model")
    assert values["kvtier_capacity_bytes"]["gpu",] == 2 * (16 << 20)
    assert values["kvtier_hit_blocks_total"][mine] == 4
    assert values["kvtier_stored_blocks_total"][mine] == _COUNT
    assert values["kvtier_evicted_blocks_total"][*mine, "invalidated"] == _COUNT
    states = {
        state: on for (tier, state), on in values["kvtier_tier_state"].items() if tier == "gpu"
    }
    assert states == {"active": 0, "degraded": 1, "unavailable": 0, "recovering": 0}


# Memory.


def test_a_device_with_less_memory_is_smaller(caplog: pytest.LogCaptureFixture) -> None:
    with running_node({"cpu": LateAccelerator(6 << 20)}) as node:
        bring(node)
        assert node.stats().capacity_bytes == 6 << 20
        assert "6 MiB were free at the start, of 16 configured" in node.stats().reason
    assert len([each for each in caplog.records if "is smaller" in each.message]) == 1


def test_a_device_without_memory_stays_off(caplog: pytest.LogCaptureFixture) -> None:
    with running_node({"cpu": LateAccelerator(1000)}) as node, worker(node) as namespace:
        store(namespace, "a", _COUNT)
        assert load(namespace, hashes_of("a", _COUNT)) == Verdict(_COUNT)
        assert node.stats().state == pb.TierStats.UNAVAILABLE
        assert node.stats().reason == "0 MiB of its memory are free"
        assert node.stats().device == "cpu"
    assert len([each for each in caplog.records if "stays off" in each.message]) == 1


def test_memory_that_others_took_meanwhile_is_done_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    late = LateAccelerator()
    with running_node({"cpu": late}) as node, worker(node) as namespace:
        late.memory_bytes = 3 << 20
        store(namespace, "a", 200)
        for _ in range(3):
            assert load(namespace, hashes_of("a", 200)) == Verdict(200)
            node.settle()
        assert 0 < node.stats().block_count <= 48
        assert late.allocated_bytes <= 3 << 20
    told = [each for each in caplog.records if "GPU cannot grow" in each.message]
    assert 1 <= len(told) <= 3
    assert late.allocated_bytes == 0


def test_all_memory_is_returned_at_the_stop(late: LateAccelerator) -> None:
    with running_node({"cpu": late}) as node:
        bring(node)
        assert late.allocated_bytes > 0
        assert late.pinned
    assert late.allocated_bytes == 0
    assert not late.pinned


def test_what_workers_still_map_counts(late: LateAccelerator) -> None:
    with (
        running_node({"cpu": late}, device_capacity="4MiB") as node,
        worker(node, "idle") as idle,
        worker(node, "busy") as busy,
    ):
        store(idle, "a", 60)
        for _ in range(2):
            load(idle, hashes_of("a", 60))  # maps what comes to the device
            node.settle()
        load(idle, hashes_of("nothing", 1))  # and ends its lease
        held = late.allocated_bytes
        arena = node.device.slots.arena
        for turn in range(8):
            store(busy, f"b {turn}", 60)
            for _ in range(2):
                load(busy, hashes_of(f"b {turn}", 60))
                node.settle()
            assert late.allocated_bytes <= 4 << 20
            node.check()
        assert node.run(lambda: arena.is_waiting), "the idle worker has not unmapped what is gone"
        assert held <= late.allocated_bytes
        idle.lookup(hashes_of("a", 1))  # it hears of it
        idle.lookup(hashes_of("a", 1))  # and says so
        wait_until(lambda: node.run(lambda: not arena.is_waiting), _DEADLINE_SECONDS)
        store(busy, "c", 60)
        for _ in range(3):
            load(busy, hashes_of("c", 60))
            node.settle()
        assert late.allocated_bytes <= 4 << 20


def test_what_a_device_may_have_is_set_at_the_start(node: GpuNode, admin: AdminClient) -> None:
    with pytest.raises(InvalidRequestError, match=r"agent starts, in tiers\.gpu\.devices"):
        admin.resize_tier(Tier.GPU, 8 << 20)
    assert node.stats().capacity_bytes == 16 << 20


# Pinned memory.


def test_hosts_extents_are_pinned_once(late: LateAccelerator) -> None:
    with running_node({"cpu": late}, tiers__host__capacity="4MiB") as node:
        with worker(node) as namespace:
            for turn in range(6):
                store(namespace, f"a {turn}", _COUNT)
                for _ in range(2):
                    load(namespace, hashes_of(f"a {turn}", _COUNT))
                    node.settle()
        assert 0 < late.pin_count == len(late.pinned)
        assert sum(late.pinned.values()) == node.agent.gpu.pinning.pinned_bytes <= 4 << 20


def test_an_extent_is_unpinned_before_its_pages_go(late: LateAccelerator) -> None:
    with running_node({"cpu": late}) as node:
        bring(node)
        assert late.pinned
        with AdminClient(node.admin_address) as admin:
            admin.evict_blocks(label_of(node))
            admin.resize_tier(Tier.HOST, 1 << 20)
            wait_until(
                lambda: admin.get_stats().tiers[1].allocated_bytes <= 1 << 20, _DEADLINE_SECONDS
            )
        assert sum(late.pinned.values()) <= 1 << 20


def test_what_cannot_be_pinned_is_copied_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with running_node({"cpu": LateAccelerator(refuses_pinning=True)}) as node:
        bring(node)
        bring(node, "b")
        with worker(node) as namespace:
            assert load(namespace, hashes_of("a", _COUNT)) == Verdict(_COUNT)
        assert node.stats().hit_count == _COUNT
    warned = [each for each in caplog.records if "cannot be pinned" in each.message]
    assert len(warned) == 1
    assert warned[0].levelno == logging.WARNING


class Registering(WorkerDevice):
    """Notes what it registers, as a worker on a device would."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.sizes: dict[int, int] = {}
        self.mapped_at_end: list[bool] = []
        self.settled_count = 0

    def pin(self, cells: ByteArray) -> list[Callable[[], None]]:
        address = cells.ctypes.data
        assert address not in self.sizes
        self.sizes[address] = cells.nbytes

        def unpin() -> None:
            maps = Path("/proc/self/maps").read_text()
            self.mapped_at_end.append(f"{address:x}-" in maps)
            del self.sizes[address]

        return [unpin]

    def settle(self) -> None:
        self.settled_count += 1


def test_a_worker_registers_each_extent_of_host_once() -> None:
    """On a device, whether the agent has a tier there or not."""
    with running_node({}) as node:
        device = Registering()
        with Client(node.address, transport="memory") as client:
            with client.attached() as connection:
                connection.use_device(device, 5.0)
            namespace = client.namespace(spec_of())
            store(namespace, "a", _COUNT)
            before = device.settled_count
            for _ in range(3):
                assert load(namespace, hashes_of("a", _COUNT)) == Verdict(_COUNT)
            assert device.settled_count > before, "generations are compared after copies have ended"
            [known] = node.agent.namespaces
            extents = [each for each in known.groups[0].extents if isinstance(each, HostExtent)]
            mapped = [each.size_bytes for each in extents if each.holders]
            assert sorted(device.sizes.values()) == sorted(mapped)
            assert sum(mapped) >= _COUNT * BLOCK_BYTES
        gc.collect()
        assert not device.sizes
        assert device.mapped_at_end == [True] * len(mapped)
