"""What is on a device is used when its bytes are there, and not before."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from kvtier import Client
from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier, Wait
from kvtier.testing import LateAccelerator
from kvtier.tiers.device import Cells, Completion
from tests.faults.blocks import Verdict, hashes_of, spec_of, store
from tests.faults.waiting import wait_until
from tests.gpu.node import GpuNode, load, running_node, worker

_BLOCKS = 64
_DEADLINE_SECONDS = 20.0


@pytest.fixture
def late() -> LateAccelerator:
    return LateAccelerator()


@pytest.fixture
def node(late: LateAccelerator) -> Iterator[GpuNode]:
    with running_node({"cpu": late}) as node:
        yield node


def test_a_block_that_is_loaded_again_comes_from_the_device(node: GpuNode) -> None:
    hashes = hashes_of("a", _BLOCKS)
    with worker(node) as namespace:
        assert store(namespace, "a", _BLOCKS) == _BLOCKS
        assert load(namespace, hashes) == Verdict(_BLOCKS)
        node.settle()
        assert node.stats().hit_count == 0
        assert node.stats().stored_count == node.stats().block_count == _BLOCKS
        assert load(namespace, hashes) == Verdict(_BLOCKS)
    assert node.stats().hit_count == _BLOCKS
    assert node.stats(Tier.HOST).hit_count == _BLOCKS
    assert node.stats(Tier.HOST).promoted_count == _BLOCKS
    assert node.stats().device == "late (fake)"


def test_64_blocks_are_a_few_copies(node: GpuNode, late: LateAccelerator) -> None:
    with worker(node) as namespace:
        store(namespace, "a", _BLOCKS)
        load(namespace, hashes_of("a", _BLOCKS))
        node.settle()
    assert late.copy_count == 1
    # Neighbours go together, up to where an extent of HOST or of the device ends.
    assert late.pair_count <= 12


def test_until_its_bytes_are_there_a_block_is_hosts(node: GpuNode, late: LateAccelerator) -> None:
    late.is_held = True
    hashes = hashes_of("a", _BLOCKS)
    with worker(node) as namespace:
        store(namespace, "a", _BLOCKS)
        for _ in range(3):
            assert load(namespace, hashes) == Verdict(_BLOCKS)
        wait_until(lambda: late.under_way, _DEADLINE_SECONDS)
        assert late.under_way == 1, "no block is copied twice"
        assert node.stats().block_count == 0
        assert node.stats(Tier.HOST).hit_count == 3 * _BLOCKS
        late.is_held = False
        node.settle()
        assert load(namespace, hashes) == Verdict(_BLOCKS)
        assert node.stats().hit_count == _BLOCKS


def test_the_loop_goes_on_while_copies_are_under_way(node: GpuNode, late: LateAccelerator) -> None:
    late.is_held = True
    with worker(node) as namespace:
        for name in ("a", "b", "c", "d"):
            store(namespace, name, 8)
            load(namespace, hashes_of(name, 8))
        wait_until(lambda: late.under_way == 2, _DEADLINE_SECONDS)
        assert namespace.lookup(hashes_of("a", 8)).matched == 8
        assert load(namespace, hashes_of("d", 8)) == Verdict(8)
        late.is_held = False
        node.settle()


class Hasty(LateAccelerator):
    """As if the agent did not wait for events."""

    def copy(self, pairs: Sequence[tuple[Cells, Cells]]) -> Completion:
        super().copy(pairs)
        return self

    def wait(self) -> None:
        """Not at all."""


def _churn(node: GpuNode, rounds: int) -> Verdict:
    """Two workers load sequences that do not fit on the device together."""
    sequences = [f"s{number}" for number in range(8)]
    total = [Verdict()]
    with worker(node) as namespace:
        for each in sequences:
            assert store(namespace, each, 48) == 48

    def work(turn: int) -> None:
        with worker(node) as namespace:
            for number in range(rounds):
                name = sequences[(number * (turn + 1) + turn) % len(sequences)]
                for _ in range(3):
                    total.append(load(namespace, hashes_of(name, 48)))

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(total, Verdict())


def test_bytes_are_right_whatever_ends_first() -> None:
    late = LateAccelerator(delay_seconds=0.01)  # so that one begins before another has ended
    with running_node({"cpu": late}, device_capacity="10MiB") as node:
        verdict = _churn(node, rounds=16)
        node.settle()
        stats = node.stats()
    assert verdict.wrong == 0
    assert stats.hit_count > 0
    assert stats.evicted_count > 0
    assert late.most_under_way == 2
    assert verdict.right > 0.9 * (verdict.right + verdict.expired)


def test_who_does_not_wait_for_an_event_is_found_out() -> None:
    """That the double is good for something."""
    with running_node({"cpu": Hasty(delay_seconds=0.02)}, device_capacity="10MiB") as node:
        verdict = _churn(node, rounds=8)
    assert verdict.wrong > 0


def test_a_block_that_leaves_host_while_it_is_copied_does_not_come(
    node: GpuNode, late: LateAccelerator
) -> None:
    late.is_held = True
    hashes = hashes_of("a", 16)
    with worker(node) as namespace:
        store(namespace, "a", 16)
        load(namespace, hashes)
        wait_until(lambda: late.under_way, _DEADLINE_SECONDS)
        [known] = node.agent.namespaces
        with AdminClient(node.admin_address) as admin:
            admin.evict_blocks(known.label)
        late.is_held = False
        node.settle()
        assert node.stats().block_count == 0
        assert namespace.lookup(hashes).matched == 0
        assert store(namespace, "a", 16) == 16
        assert load(namespace, hashes) == Verdict(16)


def test_a_lease_on_the_device_keeps_the_bytes(late: LateAccelerator) -> None:
    with running_node({"cpu": late}, device_capacity="2MiB") as node:
        hashes = hashes_of("a", 16)
        with Client(node.address, device="cpu", transport="memory") as client:
            namespace = client.namespace(spec_of())
            store(namespace, "a", 16)
            load(namespace, hashes)
            node.settle()
            with namespace.load(hashes, wait=Wait.BEST_EFFORT) as loaded:
                assert node.stats().leased_bytes > 0
                before = [bytes(view.numpy()) for view in loaded.views]
                for name in ("b", "c", "d"):
                    store(namespace, name, 16)
                    load(namespace, hashes_of(name, 16))
                node.settle()
                assert loaded.valid()
                assert [bytes(view.numpy()) for view in loaded.views] == before
