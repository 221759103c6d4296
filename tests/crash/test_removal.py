"""What an operator removes does not come back; what he does not remove stays."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from kvtier import Client, NamespaceSpec
from kvtier.client.admin import AdminClient
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.errors import AgentUnavailableError
from kvtier.testing import AgentProcess, FaultyIO
from tests.crash.agents import Key, Load, disk_agent, flush, read, restart, store
from tests.crash.node import KIB, MIB, Node, Sizes, run
from tests.faults.blocks import hashes_of, spec_of
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.crash

_SPECS = (spec_of("small", 4 * KIB), spec_of("large", 24 * KIB))
_CHAIN = 16


def _store(agent: AgentProcess, name: str, chains: int) -> dict[str, list[Key]]:
    stored = {}
    with Client(agent.address, timeout_seconds=10.0) as client:
        for number in range(chains):
            spec = _SPECS[number % 2]
            sequence = f"{name}/{number}"
            stored[sequence] = store(client, spec, hashes_of(sequence, _CHAIN))
    return stored


def _found(agent: AgentProcess, keys: Sequence[Key]) -> set[Key]:
    with Client(agent.address, timeout_seconds=10.0) as client:
        reading = read(client, _SPECS, keys)
    assert reading.wrong == set()
    return reading.right


def test_evicted_blocks_do_not_come_back(tmp_path: Path) -> None:
    random = Random(1)
    with disk_agent(tmp_path / "agent", host="16MiB", disk="256MiB") as agent:
        for turn in range(times(20)):
            chains = _store(agent, f"turn {turn}", 24)
            if turn % 2:
                with AdminClient(agent.admin_address) as admin:
                    flush(admin)
            evicted: set[Key] = set()
            with AdminClient(agent.admin_address) as admin:
                for sequence in random.sample(sorted(chains), 8):
                    name = chains[sequence][0][0]
                    first = random.randrange(_CHAIN)
                    hashes = [each for _, each in chains[sequence]]
                    admin.evict_blocks(f"default/{name}", hashes[first : first + 1])
                    evicted |= {(name, each) for each in hashes[first:]}
            agent.kill()
            restart(agent)
            keys = [key for chain in chains.values() for key in chain]
            found = _found(agent, keys)
            assert not found & evicted
            if turn % 2:
                assert found == set(keys) - evicted


def test_a_namespace_evicted_from_a_full_disk_does_not_come_back(tmp_path: Path) -> None:
    with disk_agent(tmp_path / "agent", host="4MiB", disk="16MiB") as agent:
        for turn in range(times(10)):
            keys: list[Key] = []
            with Load(agent.address, _SPECS, turn, threads=2, name=f"turn {turn}") as load:
                wait_until(lambda load=load: len(load.stored) > 1500, 20)  # type: ignore[misc]
            keys = load.stored
            assert load.wrong == set()
            with AdminClient(agent.admin_address) as admin:
                admin.evict_blocks(_SPECS[turn % 2].label)
            agent.kill()
            restart(agent)
            gone = [key for key in keys if key[0] == _SPECS[turn % 2].name]
            assert _found(agent, gone) == set()


def test_invalidated_namespaces_do_not_come_back_and_others_stay(tmp_path: Path) -> None:
    with disk_agent(tmp_path / "agent", host="64MiB", disk="256MiB") as agent:
        old = [key for chain in _store(agent, "old", 8).values() for key in chain]
        with AdminClient(agent.admin_address) as admin:
            flush(admin)
        for turn in range(times(20)):
            fresh = [key for chain in _store(agent, f"turn {turn}", 32).values() for key in chain]
            name = _SPECS[turn % 2].name
            with AdminClient(agent.admin_address) as admin:
                admin.invalidate(_SPECS[turn % 2].label)
            agent.kill()
            restart(agent)
            gone = [key for key in (*old, *fresh) if key[0] == name]
            assert _found(agent, gone) == set()
            if turn == 0:
                kept = [key for key in old if key[0] != name]
                assert _found(agent, kept) == set(kept)
            old = [key for chain in _store(agent, f"next {turn}", 8).values() for key in chain]
            with AdminClient(agent.admin_address) as admin:
                flush(admin)
            agent.kill()
            restart(agent)
            assert _found(agent, old) == set(old), "the new generation is found"


def test_drained_workers_fail_at_once_and_recover_after_resume(tmp_path: Path) -> None:
    with disk_agent(tmp_path / "agent", host="32MiB", disk="128MiB") as agent:
        for turn in range(times(10)):
            _drain_and_resume(agent, f"turn {turn}")


def _drain_and_resume(agent: AgentProcess, name: str) -> None:
    with (
        Client(agent.address, timeout_seconds=5.0) as client,
        AdminClient(agent.admin_address) as admin,
    ):
        keys = store(client, _SPECS[0], hashes_of(name, 64))
        progress = list(admin.drain(0.1))
        assert progress[-1].done
        assert not admin.is_ready()
        with pytest.raises(AgentUnavailableError):
            store(client, _SPECS[0], hashes_of(f"{name} drained", 4))
        with pytest.raises(AgentUnavailableError):
            read(client, _SPECS, keys)
        admin.resume()
        wait_until(admin.is_ready, 5.0)
        wait_until(lambda: _recovered(client), 5.0)
        assert read(client, _SPECS, keys).right == set(keys)
        agent.kill()
        restart(agent)
    assert _found(agent, keys) == set(keys), "a drain flushes"


def _recovered(client: Client) -> bool:
    try:
        client.namespace(_SPECS[0]).lookup(hashes_of("anything", 1))
    except AgentUnavailableError:
        return False
    return True


# In one process, with the order of events in the test's hands.

_SIZES = Sizes(disk_bytes=16 * MIB, host_bytes=16 * MIB)


def test_invalidation_during_demotion_leaves_nothing(tmp_path: Path) -> None:
    for turn in range(times(20)):
        run(lambda turn=turn: _invalidate(tmp_path / str(turn)))  # type: ignore[misc]


async def _invalidate(path: Path) -> None:
    spec = _SPECS[0]
    # Little is written at a time, so that most still waits when the generation changes.
    node = Node([path], replace(_SIZES, in_flight_bytes=64 * KIB))
    await node.start()
    keys = await node.store(spec, hashes_of("known", 4))
    await node.upkeep.flush(Tier.DISK)
    for number in range(32):
        keys += await node.store(spec, hashes_of(str(number), 16))
    await node.upkeep.invalidate(spec.label)
    await _assert_gone(node, path, spec, keys)


async def _assert_gone(
    node: Node, path: Path, spec: NamespaceSpec, hashes: Sequence[bytes]
) -> None:
    """Nothing is there, nor after a restart."""
    assert (await node.load(spec, hashes)).right == []
    await node.stop()
    node = Node([path], _SIZES)
    await node.start()
    answer = await node.load(spec, hashes)
    assert (answer.right, answer.wrong) == ([], [])
    await node.stop()


def test_eviction_removes_what_an_earlier_copy_says(tmp_path: Path) -> None:
    """A block that made way for others leaves its record until its slot is used again."""

    async def main() -> None:
        spec = _SPECS[0]
        node = Node([tmp_path], _SIZES)
        await node.start()
        hashes = await node.store(spec, hashes_of("known", 8))
        await node.upkeep.flush(Tier.DISK)
        [disk] = node.session(spec).namespace.tiers[Tier.DISK]
        node.empty_host()
        for _ in range(4):
            disk.evict_one()
        keys = BlockKeys(Lane(), tuple(hashes))
        await node.upkeep.evict(spec.label, lambda _: keys, frozenset(Tier), dry_run=False)
        await _assert_gone(node, tmp_path, spec, hashes)

    run(main)


def test_eviction_removes_what_is_being_written(tmp_path: Path) -> None:
    async def main() -> None:
        spec, io = _SPECS[0], FaultyIO(Random(1))
        node = Node([tmp_path], _SIZES, io)
        await node.start()
        hashes = await node.store(spec, hashes_of("known", 4))
        await node.upkeep.flush(Tier.DISK)
        io.hang()
        hashes += await node.store(spec, hashes_of("under way", 8))
        rescue = threading.Timer(0.2, io.heal)
        rescue.start()
        await node.upkeep.evict(spec.label, lambda _: None, frozenset(Tier), dry_run=False)
        rescue.join()
        await _assert_gone(node, tmp_path, spec, hashes)

    run(main)


def test_a_newer_copy_in_the_same_slab_is_found(tmp_path: Path) -> None:
    """Two records of a block, the first ones of their slab: the start keeps the newer one."""

    async def main() -> None:
        spec = _SPECS[0]
        node = Node([tmp_path], _SIZES)
        await node.start()
        first = await node.store(spec, hashes_of("first", 1))
        await node.upkeep.flush(Tier.DISK)
        [disk] = node.session(spec).namespace.tiers[Tier.DISK]
        [row] = disk.find_many(Lane(), first)
        [slot] = disk.acquire([row])  # as somebody who reads it
        disk.forget(row)
        node.empty_host()
        hashes = await node.store(spec, first)
        await node.upkeep.flush(Tier.DISK)
        hashes += await node.store(spec, hashes_of("more", 2))
        await node.upkeep.flush(Tier.DISK)
        disk.release([slot])
        await node.stop()
        node = Node([tmp_path], _SIZES)
        await node.start()
        node.audit()
        assert sorted((await node.load(spec, hashes)).right) == sorted(hashes)
        await node.stop()

    run(main)
