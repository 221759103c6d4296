"""A vLLM engine in a process of its own, driven by lines of JSON on two descriptors.

    python -m tests.vllm.engine_process IN OUT SETTINGS

It is an AsyncLLM: the scheduler and the worker run in yet another process, as they do in a server.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

import psutil
from prometheus_client import REGISTRY, generate_latest
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM


async def _generate(engine: AsyncLLM, request: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens of one request and its times in seconds; after `abort_after` tokens or seconds
    it is given up."""
    await asyncio.sleep(request.get("delay", 0.0))
    started = time.perf_counter()
    first = None
    tokens: list[int] = []
    cached = 0
    parameters = SamplingParams(
        temperature=0.0,
        max_tokens=request.get("max_tokens", 8),
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )
    prompt: dict[str, Any] = {"prompt_token_ids": request["prompt"]}
    if "salt" in request:
        prompt["cache_salt"] = request["salt"]
    adapter = LoRARequest(*request["adapter"]) if "adapter" in request else None

    async def run() -> None:
        nonlocal first, cached
        async for output in engine.generate(
            prompt, parameters, request["id"], lora_request=adapter
        ):
            new = list(output.outputs[0].token_ids)
            if new and first is None:
                first = time.perf_counter() - started
            tokens.extend(new)
            cached = output.num_cached_tokens or cached
            if len(tokens) >= request.get("abort_after", 1 << 30):
                return

    failure = ""
    try:
        await asyncio.wait_for(run(), request.get("abort_seconds"))
    except TimeoutError:
        failure = "aborted"
    except Exception as error:
        failure = repr(error)
    return {
        "id": request["id"],
        "tokens": tokens,
        "first_seconds": first,
        "seconds": time.perf_counter() - started,
        "cached": cached,
        "failure": failure,
    }


def _cpu_seconds() -> float:
    """Of this process and all its children, since their beginning."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


async def _serve(incoming: Any, outgoing: Any, settings: dict[str, Any]) -> None:
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**settings))

    def say(value: Any) -> None:
        outgoing.write(json.dumps(value).encode() + b"\n")
        outgoing.flush()

    say("ready")
    loop = asyncio.get_running_loop()
    number = 0
    while line := await loop.run_in_executor(None, incoming.readline):
        order = json.loads(line)
        if order["op"] == "generate":
            for request in order["requests"]:
                number += 1
                request.setdefault("id", f"r{number}")
            cpu, started = _cpu_seconds(), time.perf_counter()
            answers = await asyncio.gather(*(_generate(engine, r) for r in order["requests"]))
            seconds = time.perf_counter() - started
            say({"answers": answers, "cpu_seconds": _cpu_seconds() - cpu, "seconds": seconds})
        elif order["op"] == "reset":
            say(await engine.reset_prefix_cache())
        elif order["op"] == "metrics":
            await engine.do_log_stats()
            say(generate_latest(REGISTRY).decode())
        elif order["op"] == "cpu":
            say(_cpu_seconds())
    engine.shutdown()


def main() -> None:
    with os.fdopen(int(sys.argv[1]), "rb") as incoming, os.fdopen(int(sys.argv[2]), "wb") as out:
        asyncio.run(_serve(incoming, out, json.loads(sys.argv[3])))


if __name__ == "__main__":
    main()
