"""What DISK means to its agent: the start with a full table, and HOST hits beside its work."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvtier import scheduling
from kvtier.agent.sessions.namespaces import FIRST_GENERATION
from kvtier.bench.process import in_worker_process
from kvtier.client.admin import AdminClient
from kvtier.client.client import Client
from kvtier.config import AgentConfig
from kvtier.core.block import BlockStatus, Lane, Tier
from kvtier.core.namespace import NamespaceSpec, identity_digest, namespace_digest
from kvtier.daemon import Agent, tune_interpreter
from kvtier.testing.agent_process import AgentProcess
from kvtier.testing.worker_process import Pipe, WorkerProcess
from kvtier.tiers.disk import format as fmt
from kvtier.tiers.disk.io import BlockIO
from kvtier.tiers.disk.manifest import Known, Manifest
from kvtier.tiers.disk.slab import Slab
from kvtier.tiers.disk.volume import Volume

#: What either measurement takes on the device at most.
AGENT_DISK_BYTES = 5 << 28
_SLABS = 4
_SLAB_SLOTS = 65_536
_SLOT_BYTES = 4096
_CHAIN_BLOCKS = 4096
_HASH_BYTES = 32
_TABLE = NamespaceSpec(name="bench", block_bytes=(_SLOT_BYTES,))

_HIT_BLOCKS = 16
_HIT_BLOCK_BYTES = 64 << 10
_HIT_BATCHES = 16
_LOAD_BLOCKS = 64
_LOAD_BLOCK_BYTES = 2 << 20
_LOAD_BATCHES = 2
_LOAD_NAMESPACE: Final = "bench-load"
_SLICE_SECONDS = 0.0002
_PAUSE_SECONDS = 0.001
_ROUNDS = 3
_TIMEOUT_SECONDS = 30.0


def recovery(directory: Path) -> dict[str, object]:
    """How fast a full table of 262,144 slots is found again, and the memory that a block takes.

    Built and recovered in two processes, so that what building left is not used again.
    """
    slots = in_worker_process(_build, directory=directory)["slots"]
    return in_worker_process(_recover, directory=directory, slots=slots)


def _capacity_bytes() -> int:
    return _SLABS * (_SLAB_SLOTS * (_SLOT_BYTES + fmt.RECORD_BYTES) + (1 << 20)) + (8 << 20)


def _build(directory: Path) -> dict[str, Any]:
    """Slabs as the agent makes them, of sequences of 4096 blocks; payloads are not read anyway."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rng = np.random.default_rng(0)
    generation_id = FIRST_GENERATION
    volume = Volume(BlockIO(), directory, _capacity_bytes())
    manifest = Manifest([directory], volume.reserve_bytes)
    asyncio.run(manifest.save([Known(_TABLE, generation_id)]))
    identity = identity_digest(_TABLE, generation_id)
    sequence = 0
    for number in range(_SLABS):
        header = volume.new_header(namespace_digest(_TABLE), _SLAB_SLOTS, _SLOT_BYTES)
        slab = Slab(volume, header, number + 1, 0)
        slab.populate(_SLAB_SLOTS)
        slab.close()
        records, parent = [], b""
        for slot in range(_SLAB_SLOTS):
            sequence += 1
            position = slot % _CHAIN_BLOCKS
            block_hash = rng.bytes(_HASH_BYTES)
            records.append(
                fmt.Record(
                    slot=slot,
                    sequence=sequence,
                    digest=rng.bytes(fmt.DIGEST_BYTES),
                    identity=identity,
                    length=_SLOT_BYTES,
                    lane=Lane(),
                    block_hash=block_hash,
                    parent_hash=parent if position else b"",
                    position=position,
                )
            )
            parent = block_hash
        with slab.table_path.open("r+b") as table:
            table.seek(fmt.HEADER_BYTES)
            table.write(b"".join(fmt.encode_records(header.slab_id, records)))
    volume.close()
    return {"slots": sequence}


def _recover(directory: Path, slots: int) -> dict[str, Any]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tune_interpreter()
    return asyncio.run(_recover_in(directory, slots))


async def _recover_in(directory: Path, slots: int) -> dict[str, Any]:
    config = AgentConfig.model_validate(
        {
            "tiers": {
                "host": {"capacity": 1 << 20},
                "disk": {
                    "paths": [directory],
                    "capacity": _capacity_bytes(),
                    "min_free": 0,
                },
            }
        }
    )
    agent = Agent(config)
    assert agent.disk is not None
    try:
        await agent.disk.restore_namespaces(agent.namespaces)
        gc.collect()
        gc.freeze()  # as an agent does once it serves
        before, start = _private_bytes(), time.perf_counter()
        await agent.disk.recover(agent.namespaces)
        seconds = time.perf_counter() - start
        taken = _private_bytes() - before
        found = sum(len(each.residency) for each in agent.disk.tier.classes)
        assert found == slots, (found, slots)
    finally:
        await agent.stop()
    return {
        "recovery_slots": slots,
        "recovery_slots_per_second": slots / seconds,
        "metadata_bytes_per_block": taken / found,
    }


def _private_bytes() -> int:
    """Anonymous resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def host_hits(directory: Path, seconds: float) -> dict[str, object]:
    """Times of loads of 16 blocks of 64 KiB from HOST, while DISK is quiet and while it is busy.

    A busy DISK is that of a worker which stores 256 MiB, flushes, and loads them from DISK, again
    and again. The agent has one processor, both workers have the other. The ratio is the median of
    three rounds.
    """
    processors = sorted(os.sched_getaffinity(0))
    work_bytes = _LOAD_BATCHES * _LOAD_BLOCKS * _LOAD_BLOCK_BYTES
    settings = {
        "tiers.host.capacity": 3 * work_bytes,
        "tiers.host.memory_reserve": "1MiB",
        "tiers.disk.paths": directory,
        "tiers.disk.capacity": 4 * work_bytes,
        "tiers.disk.min_free": 0,
        "leases.max_share": 1.0,
        "log.level": "warning",
    }
    quiet, busy = [], []
    with ExitStack() as stack:
        agent = stack.enter_context(AgentProcess(settings=settings, cpu=processors[0]))
        hits = stack.enter_context(WorkerProcess(_hit, agent.address, processors[-1]))
        load = stack.enter_context(
            WorkerProcess(_keep_busy, agent.address, agent.admin_address, processors[-1])
        )
        for worker in (hits, load):
            worker.hear()
        each = max(0.5, seconds / (2 * _ROUNDS))
        for _ in range(_ROUNDS):
            quiet.append(hits.ask(each, each + _TIMEOUT_SECONDS))
            load.ask("go")
            busy.append(hits.ask(each, each + _TIMEOUT_SECONDS))
            load.ask("stop", _TIMEOUT_SECONDS)
    return {
        "host_hit_bytes": _HIT_BLOCKS * _HIT_BLOCK_BYTES,
        "host_hit_p99_us": statistics.median(quiet) * 1e6,
        "host_hit_p99_under_disk_load_us": statistics.median(busy) * 1e6,
        "host_hit_p99_ratio_under_disk_load": statistics.median(
            [b / q for b, q in zip(busy, quiet, strict=True)]
        ),
    }


def _hit(pipe: Pipe, address: str, processor: int) -> None:
    """Hears for how many seconds to load, says the p99 of its loads in seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.sched_setaffinity(0, {processor})
    scheduling.set_time_slice(_SLICE_SECONDS)  # the agent is measured, not the wait for a processor
    rng = np.random.default_rng(0)
    blocks = np.zeros((_HIT_BLOCKS, _HIT_BLOCK_BYTES), dtype=np.uint8)
    batches = [[rng.bytes(_HASH_BYTES) for _ in range(_HIT_BLOCKS)] for _ in range(_HIT_BATCHES)]
    with Client(address, worker="bench-hits", timeout_seconds=_TIMEOUT_SECONDS) as client:
        namespace = client.namespace(
            NamespaceSpec(name="bench-hits", block_bytes=(_HIT_BLOCK_BYTES,))
        )
        for hashes in batches:
            statuses = namespace.store(hashes, blocks)
            assert set(statuses) == {BlockStatus.OK}, statuses
        pipe.say()
        while True:
            try:
                seconds = pipe.hear()
            except EOFError:
                return
            end = time.perf_counter() + seconds
            times: list[float] = []
            while time.perf_counter() < end:
                time.sleep(_PAUSE_SECONDS)
                hashes = batches[len(times) % _HIT_BATCHES]
                start = time.perf_counter()
                statuses = namespace.load_into(hashes, blocks)
                times.append(time.perf_counter() - start)
                assert set(statuses) == {BlockStatus.OK}, statuses
            for hashes in batches:
                found = namespace.lookup(hashes)
                assert found.runs == ((Tier.HOST, _HIT_BLOCKS),), found
            pipe.say(float(np.quantile(times, 0.99)))


def _keep_busy(pipe: Pipe, address: str, admin_address: str, processor: int) -> None:
    """Writes to DISK and reads from it between "go" and "stop".

    It gives way to the worker on the same processor, whose wait for the agent is measured.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.sched_setaffinity(0, {processor})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    rng = np.random.default_rng(1)
    blocks = np.zeros((_LOAD_BLOCKS, _LOAD_BLOCK_BYTES), dtype=np.uint8)
    with (
        Client(address, worker="bench-load", timeout_seconds=_TIMEOUT_SECONDS) as client,
        AdminClient(admin_address, timeout_seconds=_TIMEOUT_SECONDS) as admin,
    ):
        namespace = client.namespace(
            NamespaceSpec(name=_LOAD_NAMESPACE, block_bytes=(_LOAD_BLOCK_BYTES,))
        )

        def work() -> None:
            batches = [
                [rng.bytes(_HASH_BYTES) for _ in range(_LOAD_BLOCKS)] for _ in range(_LOAD_BATCHES)
            ]
            for hashes in batches:
                namespace.store(hashes, blocks)
            admin.flush(Tier.DISK)
            admin.evict_blocks(f"default/{_LOAD_NAMESPACE}", tiers=[Tier.HOST])
            for hashes in batches:
                statuses = namespace.load_into(hashes, blocks)
                assert set(statuses) == {BlockStatus.OK}, statuses

        for _ in range(4):
            work()
        pipe.say()
        while True:
            try:
                pipe.hear()
            except EOFError:
                return
            pipe.say()
            while pipe.is_quiet():
                work()
            pipe.hear()
            pipe.say()
