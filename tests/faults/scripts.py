"""What the worker processes of these tests do."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from kvtier import BlockStatus, Client, Namespace
from kvtier.errors import AgentUnavailableError, KvtierError
from kvtier.memory import PAGE_BYTES, ByteArray
from kvtier.testing.worker_process import Pipe
from kvtier.v1 import block_cache_pb2 as pb
from tests.faults.blocks import Verdict, hashes_of, judge, payloads, spec_of, store, verdict_of
from tests.faults.raw_worker import RawWorker, keys_message

_PIECE_BYTES = 512
_STOPPED_WITHIN_SECONDS = 5.0
_STOPPED_SECONDS = 0.05
#: A call that fails for want of an agent takes less.
SLOW_SECONDS = 0.05


def hold_everything(pipe: Pipe, address: str, sequence: str, count: int) -> None:
    """Takes a hold, a lease and a half-written reservation, and waits for its death."""
    with Client(address, timeout_seconds=5) as client:
        namespace = client.namespace(spec_of())
        namespace.lookup(hashes_of("held", count), hold_seconds=10)
        loaded = namespace.load(hashes_of("leased", count))
        hashes = hashes_of(sequence, count)
        with namespace.reserve(hashes) as reservation:
            for cell, row in zip(reservation.cells, payloads(namespace.spec, hashes), strict=True):
                assert cell is not None
                cell[: cell.size // 2] = row[: row.size // 2]
            pipe.say([loaded.count, list(reservation.statuses).count(BlockStatus.OK)])
            pipe.hear()


def name_each_step(pipe: Pipe, address: str, sequence: str, count: int, block_bytes: int) -> None:
    """Stores and loads for ever in large batches, and names each step before it begins."""
    with Client(address, timeout_seconds=5) as client:
        namespace = client.namespace(spec_of("large", block_bytes))
        for turn in range(1 << 30):
            hashes = hashes_of(f"{sequence}/{turn % 4}", count)
            rows = payloads(namespace.spec, hashes)
            pipe.say("reserve")
            with namespace.reserve(hashes) as reservation:
                pipe.say("write")
                reservation.write(rows)
                pipe.say("commit")
                reservation.commit()
            pipe.say("lookup")
            found = namespace.lookup(hashes, hold_seconds=5)
            pipe.say("load")
            with namespace.load(hashes, hold_id=found.hold_id):
                pipe.say("loaded")


def load_slowly(pipe: Pipe, address: str, sequence: str, count: int, ttl_seconds: float) -> None:
    """Copies leased blocks in small pieces; answers what it accepted and where it stood still."""
    with Client(address, timeout_seconds=5) as client:
        namespace = client.namespace(spec_of())
        hashes = hashes_of(sequence, count)
        with namespace.load(hashes, ttl_seconds=ttl_seconds) as loaded:
            copies, cells = [], []
            for view in loaded.views:
                assert view is not None
                cells.append(view)
                copies.append(np.zeros(view.size, np.uint8))
            stood_still_at = _copy_in_pieces(copies, cells, lambda: pipe.say("copying"))
            loaded.valid()
        verdict = verdict_of(namespace.spec, hashes, loaded.statuses, copies)
        pipe.say({"stood_still_at": stood_still_at, **asdict(verdict)})
        pipe.hear()


def store_slowly(pipe: Pipe, address: str, sequence: str, count: int, ttl_seconds: float) -> None:
    """Writes a reservation in many small pieces, commits, answers the statuses, gives back."""
    with Client(address, timeout_seconds=5) as client:
        namespace = client.namespace(spec_of())
        hashes = hashes_of(sequence, count)
        with namespace.reserve(hashes, ttl_seconds=ttl_seconds) as reservation:
            cells = [cell for cell in reservation.cells if cell is not None]
            rows = payloads(namespace.spec, hashes)
            stood_still_at = _copy_in_pieces(cells, rows, lambda: pipe.say(len(cells)))
            statuses = reservation.commit()
        pipe.say({"stood_still_at": stood_still_at, "statuses": list(map(int, statuses))})
        while pipe.hear() == "call":
            namespace.load(hashes).release()
            pipe.say()


def _copy_in_pieces(
    targets: Sequence[ByteArray], sources: Sequence[ByteArray], begun: Callable[[], None]
) -> float:
    """The part that was copied when it stood still longest; 0 if it never did.

    It goes on with the first piece until it has been stopped, so that this is in the middle.
    """
    total = sum(len(each) for each in targets)
    copied, longest, where, before = 0, 0.0, 0.0, time.monotonic()
    patience = before + _STOPPED_WITHIN_SECONDS
    for target, source in zip(targets, sources, strict=True):
        for start in range(0, len(target), _PIECE_BYTES):
            target[start : start + _PIECE_BYTES] = source[start : start + _PIECE_BYTES]
            if copied == 0:
                begun()
            copied += _PIECE_BYTES
            while True:
                now = time.monotonic()
                if now - before > max(longest, _STOPPED_SECONDS):
                    longest, where = now - before, copied / total
                before = now
                if longest or now > patience:
                    break
                target[start : start + _PIECE_BYTES] = source[start : start + _PIECE_BYTES]
    return where


def churn(pipe: Pipe, address: str, name: str, sequences: int, count: int, timeout: float) -> None:
    """Stores and loads until told to stop, whatever becomes of the agent; reports when asked."""
    total, failures, succeeded_at, turn = Verdict(), 0, 0.0, 0
    with Client(address, timeout_seconds=timeout) as client:
        namespace = client.namespace(spec_of(name))
        while True:
            turn += 1
            try:
                total += _store_and_load(namespace, f"{name}/{turn % sequences}", count)
                succeeded_at = time.monotonic()
            except KvtierError:
                failures += 1
            if not pipe.is_quiet():
                if pipe.hear() == "stop":
                    break
                pipe.say({**asdict(total), "failures": failures, "succeeded_at": succeeded_at})
    pipe.say({**asdict(total), "failures": failures})


def _store_and_load(namespace: Namespace, sequence: str, count: int) -> Verdict:
    hashes = hashes_of(sequence, count)
    found = namespace.lookup(hashes, hold_seconds=1)
    if found.matched < count:
        store(namespace, sequence, count)
    return judge(namespace, hashes)


def fill(pipe: Pipe, address: str, name: str, block_bytes: int, count: int) -> None:
    """Stores new sequences until told to stop; answers the count of blocks refused."""
    refused, turn = 0, 0
    with Client(address, timeout_seconds=5) as client:
        namespace = client.namespace(spec_of(name, block_bytes))
        rows = np.zeros((count, block_bytes), np.uint8)
        namespace.lookup(hashes_of(name, 1))
        pipe.say("going")
        while pipe.is_quiet():
            turn += 1
            statuses = namespace.store(hashes_of(f"{name}/{turn}", count), rows)
            refused += list(statuses).count(BlockStatus.REFUSED)
    pipe.hear()
    pipe.say(refused)


def burst(pipe: Pipe, address: str, sequence: str, blocks: int, batch: int) -> None:
    """Stores its blocks as fast as it can; answers the statuses, and then a judgement of loads."""
    with Client(address, timeout_seconds=5) as client:
        namespace = client.namespace(spec_of())
        names = [f"{sequence}/{index}" for index in range(blocks // batch)]
        rows = {name: payloads(namespace.spec, hashes_of(name, batch)) for name in names}
        namespace.lookup(hashes_of("warm-up", 1))
        pipe.say("ready")
        pipe.hear()
        begin, counts = time.monotonic(), [0] * (max(BlockStatus) + 1)
        for name in names:
            for status in namespace.store(hashes_of(name, batch), rows[name]):
                counts[status] += 1
        pipe.say({"seconds": time.monotonic() - begin, "counts": counts})
        pipe.hear()
        verdict = Verdict()
        for name in names:
            verdict += judge(namespace, hashes_of(name, batch))
        pipe.say(asdict(verdict))


def connect_as(pipe: Pipe, address: str, user: int, tenant: str) -> None:
    """As another user and group, answers the error that it gets, or how many blocks it sees."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    try:
        with Client(address, timeout_seconds=2) as client:
            namespace = client.namespace(spec_of(tenant=tenant))
            pipe.say(["OK", namespace.lookup(hashes_of("secret", 4)).matched])
    except KvtierError as error:
        pipe.say([type(error).__name__, str(error)])


def time_calls(pipe: Pipe, address: str, threads: int, timeout: float) -> None:
    """Calls from several threads; answers, when asked, each thread's slow calls and what it got."""
    with Client(address, timeout_seconds=timeout) as client:
        namespace = client.namespace(spec_of())
        store(namespace, "timed", 4)
        stop, callers = threading.Event(), [Caller(namespace) for _ in range(threads)]
        running = [threading.Thread(target=each.call, args=(stop,)) for each in callers]
        for thread in running:
            thread.start()
        pipe.say("going")
        while pipe.hear() == "report":
            pipe.say([asdict(each.record) for each in callers])
        stop.set()
        for thread in running:
            thread.join()
        pipe.say("stopped")


@dataclass
class Record:
    """What one thread's calls got, and the seconds of those that took long."""

    right: int = 0
    wrong: int = 0
    failures: int = 0
    slow: list[float] = field(default_factory=list)


class Caller:
    """Loads the same blocks again and again, in a thread of its own."""

    def __init__(self, namespace: Namespace) -> None:
        self.record = Record()
        self._namespace = namespace

    def call(self, stop: threading.Event) -> None:
        hashes = hashes_of("timed", 4)
        while not stop.wait(0.002):
            begin = time.monotonic()
            try:
                verdict = judge(self._namespace, hashes)
                self.record.right += verdict.right
                self.record.wrong += verdict.wrong
            except KvtierError:
                self.record.failures += 1
            if time.monotonic() - begin > SLOW_SECONDS:
                self.record.slow.append(time.monotonic() - begin)


def hang_up_while_reserving(pipe: Pipe, directory: str, sequence: str, count: int) -> None:
    """Ends its attach connection while the agent works on its reservation, and lives on."""
    with RawWorker(Path(directory)) as worker:
        session = worker.open(spec_of("large", 4096))
        request = pb.ReserveBlocksRequest(keys=[keys_message(hashes_of(sequence, count))])
        call = worker.start("ReserveBlocks", request, session)
        threading.Event().wait(0.01)
        worker.detach()
        with suppress(grpc.RpcError):
            call.result()
        pipe.say()
        pipe.hear()


def use_a_client_after_fork(pipe: Pipe, address: str) -> None:
    """Answers how a forked child ended, and then whether the parent's client still works."""
    client = Client(address, timeout_seconds=2)
    namespace = client.namespace(spec_of())
    store(namespace, "forked", 4)
    inherited: list[Any] = [client, namespace, namespace.load(hashes_of("forked", 4))]
    del client, namespace
    child = os.fork()
    if child == 0:
        os._exit(_in_child(inherited))
    status = os.waitpid(child, 0)[1]
    pipe.say([status, asdict(judge(inherited[1], hashes_of("forked", 4)))])
    inherited[0].close()


def _in_child(inherited: list[Any]) -> int:
    """Maps memory where the parent has the agent's, drops the parent's, and touches its own."""
    try:
        inherited[1].lookup(hashes_of("forked", 4))
        return 1
    except AgentUnavailableError:
        pass
    address = inherited[2].views[0].ctypes.data
    address -= address % PAGE_BYTES
    if _map_at(address) != address:
        return 2
    ctypes.memset(address, 1, PAGE_BYTES)
    inherited[0].close()
    inherited.clear()
    gc.collect()
    ctypes.memset(address, 2, PAGE_BYTES)
    return 0


def _map_at(address: int) -> int:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return int(libc.mmap(address, PAGE_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0))


def close_while_a_child_lives(pipe: Pipe, address: str) -> None:
    """Closes its client while a forked child, which inherited its descriptors, lives on."""
    client = Client(address, timeout_seconds=2)
    store(client.namespace(spec_of()), "forked", 4)
    child = os.fork()
    if child == 0:
        pipe.hear()
        os._exit(0)
    client.close()
    pipe.say()
    os.waitpid(child, 0)


def use_and_leave(pipe: Pipe, address: str, name: str, block_bytes: int, count: int) -> None:
    """Stores and loads its blocks once; answers the judgement."""
    with Client(address, timeout_seconds=5) as client:
        namespace = client.namespace(spec_of(name, block_bytes))
        total = Verdict()
        for index in range(count // 16):
            store(namespace, f"{name}/{index}", 16)
            total += judge(namespace, hashes_of(f"{name}/{index}", 16))
        pipe.say(asdict(total))


def write_a_stream(pipe: Pipe, address: str, sequence: str, count: int) -> None:
    """Stores large blocks without shared memory."""
    with Client(address, timeout_seconds=5, transport="stream") as client:
        namespace = client.namespace(spec_of("large", 2 << 20))
        hashes = hashes_of(sequence, count)
        blocks = payloads(namespace.spec, hashes)
        pipe.say()
        namespace.store(hashes, blocks)
        pipe.hear()
