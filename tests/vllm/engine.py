"""The test's end of an engine process."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.faults.waiting import wait_until

_START_SECONDS = 180.0
_ROOT = Path(__file__).parents[2]


def connector(address: str, **extra: Any) -> dict[str, Any]:
    """The engine's setting for KvtierConnector."""
    return {
        "kv_connector": "KvtierConnector",
        "kv_connector_module_path": "kvtier.integrations.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"address": address, **extra},
    }


class Engine:
    """Starts at once, is ready after `wait`; a context manager that leaves nothing behind."""

    def __init__(
        self,
        model: Path,
        log: Path,
        kv_transfer_config: Mapping[str, Any] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        values: dict[str, Any] = {
            "model": str(model),
            "dtype": "float32",
            "block_size": 32,
            "max_num_seqs": 8,
            "max_model_len": 8192,
            "enforce_eager": True,
            "prefix_caching_hash_algo": "sha256_cbor",
            **settings,
        }
        if kv_transfer_config:
            values["kv_transfer_config"] = dict(kv_transfer_config)
        here, there = os.pipe(), os.pipe()
        self._out = os.fdopen(here[1], "wb")
        self._in = os.fdopen(there[0], "rb", buffering=0)
        self._buffer = b""
        self.log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.vllm.engine_process"),
                    *(str(here[0]), str(there[1]), json.dumps(values)),
                ],
                pass_fds=(here[0], there[1]),
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": str(_ROOT),
                    "HF_HUB_OFFLINE": "1",
                    "VLLM_NO_USAGE_STATS": "1",
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
                    **(environ or {}),
                },
            )
        os.close(here[0])
        os.close(there[1])

    def wait(self) -> Engine:
        assert self._hear(_START_SECONDS) == "ready"
        return self

    def generate(
        self, *requests: dict[str, Any], deadline_seconds: float = 300.0
    ) -> dict[str, Any]:
        """`answers` in order, and the `cpu_seconds` and `seconds` that they took together."""
        self._say({"op": "generate", "requests": list(requests)})
        answer: dict[str, Any] = self._hear(deadline_seconds)
        return answer

    def start_generating(self, *requests: dict[str, Any]) -> None:
        """The answer is to be heard with `answer`."""
        self._say({"op": "generate", "requests": list(requests)})

    def answer(self, deadline_seconds: float = 300.0) -> dict[str, Any]:
        answer: dict[str, Any] = self._hear(deadline_seconds)
        return answer

    def reset(self) -> None:
        """Forgets the engine's own prefix cache, once what it stores is stored."""
        time.sleep(0.5)
        self._say({"op": "reset"})
        for _ in range(50):
            if self._hear(30.0):
                return
            time.sleep(0.1)
            self._say({"op": "reset"})
        raise AssertionError("the prefix cache is in use")

    def cpu_seconds(self) -> float:
        """Of all its processes, since their beginning."""
        self._say({"op": "cpu"})
        return float(self._hear(30.0))

    def wait_idle(self) -> None:
        """Until its processes rest: they spin for a second after a step."""
        seen = self.cpu_seconds()

        def is_idle() -> bool:
            nonlocal seen
            before, seen = seen, self.cpu_seconds()
            return seen - before < 0.05

        wait_until(is_idle, 10.0, 0.25)

    def metrics(self) -> dict[str, float]:
        """Values by name and labels, `engine` and `model_name` left out."""
        self._say({"op": "metrics"})
        found: dict[str, float] = {}
        for line in self._hear(30.0).splitlines():
            if line.startswith("vllm:"):
                name, _, value = line.rpartition(" ")
                metric, _, labels = name.partition("{")
                kept = [
                    each
                    for each in labels.rstrip("}").split(",")
                    if each and not each.startswith(("engine=", "model_name="))
                ]
                key = f"{metric}{{{','.join(kept)}}}" if kept else metric
                found[key] = found.get(key, 0.0) + float(value)
        return found

    def _say(self, order: Any) -> None:
        self._out.write(json.dumps(order).encode() + b"\n")
        self._out.flush()

    def _hear(self, deadline_seconds: float) -> Any:
        deadline = time.monotonic() + deadline_seconds
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._in], [], [], left)[0]:
                raise TimeoutError(f"the engine said nothing for {deadline_seconds} s: {self.tail}")
            data = os.read(self._in.fileno(), 1 << 20)
            if not data:
                raise RuntimeError(f"the engine has ended:\n{self.tail}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    @property
    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    def close(self) -> None:
        """Asks it to end, then makes it end."""
        self._out.close()
        try:
            self._process.wait(20.0)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._kill_group()
            self._process.wait()
            self._in.close()

    def _kill_group(self) -> None:
        """Its session holds the scheduler and the workers, too."""
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self._process.pid:
                    process.send_signal(signal.SIGKILL)
            except (ProcessLookupError, psutil.Error):
                continue

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
