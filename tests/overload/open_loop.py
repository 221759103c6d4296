"""A process that calls an agent as often as it is told to, whether answers come or not."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import Message

from kvtier import Client, NamespaceSpec
from kvtier.core.retry_info import STATUS_METADATA, overloaded_error
from kvtier.scheduling import set_time_slice
from kvtier.testing.worker_process import Pipe
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2
from tests.faults.blocks import MIB, hashes_of, spec_of
from tests.faults.raw_streamer import RawStreamer
from tests.faults.raw_worker import RawWorker, keys_message

#: Of a stream: 64 MiB, so that answering is what takes time, for the agent and for the caller.
BLOCKS: Final = 32
SPEC: Final[NamespaceSpec] = spec_of("overload", 2 * MIB)
_STREAM_BYTES: Final = BLOCKS * 2 * MIB
_SEQUENCES: Final = 4
_SESSIONS: Final = 4
_CALL_SECONDS: Final = 5.0
_METADATA: Final = "kvtier-session-bin"
_TICK_SECONDS: Final = 0.005
#: Of a hundred calls: a stream of blocks without shared memory, slots for new blocks, a prefetch.
_MIX: Final = {"ReadBlocks": 70, "ReserveBlocks": 15, "PrefetchPrefix": 15}


def offer(pipe: Pipe, directory: str, cpu: int) -> None:
    """Hears ["closed", calls at a time, seconds] or ["open", calls a second, seconds], and says
    what became of the calls; until it hears "stop"."""
    os.sched_setaffinity(0, {cpu})
    # It shares a processor with who looks up, and is not to be measured with the agent.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with ExitStack() as stack:
        worker = stack.enter_context(RawWorker(Path(directory)))
        streamer = stack.enter_context(RawStreamer(Path(directory)))
        tokens = {
            "ReadBlocks": [streamer.open(SPEC) for _ in range(_SESSIONS)],
            "ReserveBlocks": [worker.open(SPEC) for _ in range(_SESSIONS)],
        }
        tokens["PrefetchPrefix"] = tokens["ReserveBlocks"]
        pipe.say("ready")
        while (order := pipe.hear()) != "stop":
            kind, rate, seconds = order
            pipe.say(asyncio.run(_offer(Path(directory), tokens, kind, rate, seconds)))


async def _offer(
    directory: Path, tokens: dict[str, list[bytes]], kind: str, rate: float, seconds: float
) -> dict[str, Any]:
    async with _Offering(directory, tokens) as offering:
        began = time.monotonic()
        if kind == "closed":
            await offering.closed(int(rate), began + seconds)
        else:
            await offering.open(rate, began + seconds)
        elapsed = time.monotonic() - began
    counts = {f"{method} {outcome}": count for (method, outcome), count in offering.counts.items()}
    return {"counts": counts, "seconds": elapsed, "retries": offering.retries[:1000]}


class _Offering:
    """Calls of a mix of methods, all in sessions with shared memory."""

    def __init__(self, directory: Path, tokens: dict[str, list[bytes]]) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.retries: list[float] = []
        self._channels = [
            grpc.aio.insecure_channel(
                f"unix:{directory / 'worker.sock'}",
                options=[("grpc.use_local_subchannel_pool", 1)],
            )
            for _ in range(_SESSIONS)
        ]
        self._tokens = tokens
        self._requests = _requests()
        self._random = Random(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = cycle(range(_SESSIONS))

    async def closed(self, callers: int, deadline: float) -> None:
        async def caller() -> None:
            while time.monotonic() < deadline:
                await self._call(self._method(), next(self._turns))

        await asyncio.gather(*(caller() for _ in range(callers)))

    async def open(self, rate: float, deadline: float) -> None:
        began, sent = time.monotonic(), 0
        while (now := time.monotonic()) < deadline:
            for _ in range(int((now - began) * rate) - sent):
                task = asyncio.create_task(self._call(self._method(), next(self._turns)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                sent += 1
            await asyncio.sleep(_TICK_SECONDS)
        await asyncio.gather(*self._tasks)

    def _method(self) -> str:
        return self._random.choices(list(_MIX), list(_MIX.values()))[0]

    async def _call(self, method: str, session: int) -> None:
        channel, metadata = self._channels[session], ((_METADATA, self._tokens[method][session]),)
        request, path = (
            self._random.choice(self._requests[method]),
            f"/kvtier.v1.BlockCache/{method}",
        )
        try:
            if method == "ReadBlocks":
                read: Any = channel.unary_stream(path)
                answers = read(request, timeout=_CALL_SECONDS, metadata=metadata)
                received = 0
                async for message in answers:
                    received += len(message)
                outcome = "OK" if received > _STREAM_BYTES else "in part"
            else:
                call: Any = channel.unary_unary(path)
                await call(request, timeout=_CALL_SECONDS, metadata=metadata)
                outcome = "OK"
        except grpc.aio.AioRpcError as error:
            outcome = self._outcome(error)
        self.counts[method, outcome] += 1

    def _outcome(self, error: grpc.aio.AioRpcError) -> str:
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return "late"
        if code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            return f"{code.name}: {error.details()}"
        for key, value in error.trailing_metadata() or ():
            if key == STATUS_METADATA:
                assert isinstance(value, bytes)
                self.retries.append(overloaded_error(value).retry_after_seconds)
                return "refused"
        return "refused without RetryInfo"

    async def __aenter__(self) -> _Offering:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for each in self._channels:
            await each.close()


def _requests() -> dict[str, list[bytes]]:
    makers: dict[str, Callable[[block_pb2.BlockKeys], Message]] = {
        "ReadBlocks": lambda keys: pb.ReadBlocksRequest(keys=keys),
        "ReserveBlocks": lambda keys: pb.ReserveBlocksRequest(keys=[keys]),
        "PrefetchPrefix": lambda keys: pb.PrefetchPrefixRequest(keys=keys),
    }
    keys = [keys_message(hashes_of(each, BLOCKS)) for each in sequences()]
    return {
        name: [make(each).SerializeToString() for each in keys] for name, make in makers.items()
    }


def sequences() -> list[str]:
    return [f"stored {number}" for number in range(_SEQUENCES)]


def look_up(pipe: Pipe, address: str, cpu: int) -> None:
    """Looks up some blocks again and again; says the seconds of each when it hears how many there
    shall be, until it hears "stop"."""
    os.sched_setaffinity(0, {cpu})
    set_time_slice(0.0001)
    hashes = hashes_of("stored 0", BLOCKS)
    with Client(address, timeout_seconds=10) as client:
        namespace = client.namespace(SPEC)
        namespace.lookup(hashes)
        pipe.say("ready")
        while (order := pipe.hear()) != "stop":
            taken, deadline = [], time.monotonic() + order
            while time.monotonic() < deadline:
                begin = time.monotonic()
                assert namespace.lookup(hashes).matched == len(hashes)
                taken.append(time.monotonic() - begin)
                time.sleep(0.002)  # paced: it is no load itself
            pipe.say(taken)
