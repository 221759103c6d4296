"""Workers that die, devices that fail, blocks that go: no wrong byte, and nothing is lost."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence

import pytest
import torch

from kvtier import Client
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.testing import LateAccelerator
from kvtier.testing.worker_process import Pipe, WorkerProcess
from kvtier.tiers.device import Cells, Completion
from tests.faults.blocks import BLOCK_BYTES, Verdict, hashes_of, spec_of, store
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until
from tests.gpu.node import GpuNode, load, running_node, worker

_DEADLINE_SECONDS = 20.0
#: A worker imports torch first.
_IMPORT_SECONDS = 120.0
_COUNT = 16


def bring(node: GpuNode, name: str, namespace: str = "model") -> None:
    """A sequence that HOST has and the device too."""
    with worker(node, namespace) as verbs:
        assert store(verbs, name, _COUNT) == _COUNT
        assert load(verbs, hashes_of(name, _COUNT)) == Verdict(_COUNT)
    node.settle()


def label_of(node: GpuNode) -> str:
    [known] = node.agent.namespaces
    return known.label


def copy_for_ever(pipe: Pipe, address: str) -> None:
    """A worker that copies out of the device's memory until it is killed."""
    with Client(address, device="cpu", transport="memory", timeout_seconds=10.0) as client:
        namespace = client.namespace(spec_of())
        with namespace.load(hashes_of("a", _COUNT)) as loaded:
            out = torch.zeros((_COUNT, BLOCK_BYTES), dtype=torch.uint8)
            pipe.say(sum(isinstance(view, torch.Tensor) for view in loaded.views))
            while True:
                for row, view in zip(out, loaded.views, strict=True):
                    row.copy_(view)


def test_a_worker_killed_while_it_copies_gives_everything_back() -> None:
    late = LateAccelerator(delay_seconds=0.0)
    with running_node({"cpu": late}, device_capacity="2MiB") as node:
        bring(node, "a")
        for _ in range(times(10)):
            with WorkerProcess(copy_for_ever, node.address) as copying:
                assert copying.hear(_IMPORT_SECONDS) == _COUNT
                assert node.stats().leased_bytes == _COUNT * BLOCK_BYTES
                copying.kill()
                wait_until(lambda: not node.stats().leased_bytes, _DEADLINE_SECONDS)
            for name in ("b", "c", "a"):
                bring(node, name)
            node.check()
        [known] = node.agent.namespaces
        extents = known.devices[0][0].extents
        # Its process mapped them; nobody does now, so that another namespace can have the memory.
        wait_until(lambda: not any(getattr(e, "holders", ()) for e in extents), _DEADLINE_SECONDS)
        bring(node, "a", "other")
        with worker(node, "other") as verbs:
            for _ in range(3):
                assert load(verbs, hashes_of("a", _COUNT)) == Verdict(_COUNT)
        assert late.allocated_bytes <= 2 << 20


@pytest.mark.parametrize("how", ["evict", "invalidate"])
def test_a_lease_keeps_the_bytes_of_a_copy_whose_block_leaves_host(how: str) -> None:
    """And the slot is nobody else's until it ends."""
    late = LateAccelerator(delay_seconds=0.0)
    with (
        running_node({"cpu": late}, device_capacity="2MiB") as node,
        worker(node) as namespace,
        AdminClient(node.admin_address) as admin,
    ):
        bring(node, "a")
        with namespace.load(hashes_of("a", _COUNT)) as loaded:
            assert all(isinstance(view, torch.Tensor) for view in loaded.views)
            before = [bytes(view.numpy()) for view in loaded.views]
            if how == "evict":
                admin.evict_blocks(label_of(node), hashes_of("a", _COUNT), force=True)
            else:
                admin.invalidate(label_of(node))
            assert namespace.lookup(hashes_of("a", _COUNT)).matched == 0
            with worker(node) as other:
                assert load(other, hashes_of("a", _COUNT)) == Verdict()
                for name in ("b", "c", "d"):
                    store(other, name, _COUNT)
                    for _ in range(2):
                        assert load(other, hashes_of(name, _COUNT)) == Verdict(_COUNT)
                        node.settle()
            assert [bytes(view.numpy()) for view in loaded.views] == before
            assert loaded.valid()
        node.settle()


class Failing(LateAccelerator):
    """Copies begin, and then fail; what they wrote is garbage."""

    is_failing = True

    def copy(self, pairs: Sequence[tuple[Cells, Cells]]) -> Completion:
        done = super().copy(pairs)
        return _Failed() if self.is_failing else done


class _Failed:
    def wait(self) -> None:
        raise OSError(errno.EIO, "the device has failed")


def test_what_a_device_fails_to_copy_is_never_served(caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing(delay_seconds=0.0)
    with running_node({"cpu": failing}) as node, worker(node) as namespace:
        store(namespace, "a", _COUNT)
        for _ in range(3):
            assert load(namespace, hashes_of("a", _COUNT)) == Verdict(_COUNT)
            node.settle()
        assert node.stats().block_count == node.stats().hit_count == 0
        assert node.stats(Tier.HOST).hit_count == 3 * _COUNT
        assert node.device.error_count == 3
        node.check()
        failing.is_failing = False
        for _ in range(2):
            assert load(namespace, hashes_of("a", _COUNT)) == Verdict(_COUNT)
            node.settle()
        assert node.stats().hit_count == _COUNT
    told = [each for each in caplog.records if "cannot be copied to it" in each.message]
    assert {each.levelno for each in told} == {logging.ERROR}
