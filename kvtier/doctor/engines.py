"""Engines: the version that is installed, and how those that run were started."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kvtier.doctor.finding import Finding, ok, problem, skipped, warning
from kvtier.v1.cache_admin_pb2 import NamespaceInfo

#: What the connector is made for (docs/integrations.md).
_VLLM = "0.32"
_TRANSFER, _HASHES = "--kv-transfer-config", "--prefix-caching-hash-algo"
_GOOD_HASHES = "sha256_cbor"
_GET_IT = f"install vLLM {_VLLM}, or the kvtier that goes with that vLLM"


@dataclass(frozen=True)
class Engine:
    """A process that was started with the connector."""

    pid: int
    arguments: tuple[str, ...]
    #: None where another user's process does not let it be seen.
    hash_seed: str | None

    def option(self, name: str) -> str | None:
        """Written as `--name value` or `--name=value`."""
        for place, each in enumerate(self.arguments):
            if each == name and place + 1 < len(self.arguments):
                return self.arguments[place + 1]
            if each.startswith(f"{name}="):
                return each.removeprefix(f"{name}=")
        return None


def engine_findings(namespaces: Sequence[NamespaceInfo]) -> Iterator[Finding]:
    """`namespaces` are those of a running agent."""
    yield _installed()
    engines = list(running_engines(Path("/proc")))
    for engine in engines:
        yield from _settings(engine)
    yield from _seeds(engines)
    yield from _namespaces(namespaces)


def _installed() -> Finding:
    try:
        found = version("vllm")
    except PackageNotFoundError:
        return skipped("vLLM", "not installed in this environment")
    return judged_version("vLLM", found)


def judged_version(subject: str, found: str) -> Finding:
    if ".".join(found.split(".")[:2]) == _VLLM:
        return ok(subject, f"version {found}")
    return problem(subject, f"version {found}; the connector is made for {_VLLM}", _GET_IT)


def running_engines(processes: Path) -> Iterator[Engine]:
    """Of this machine, as far as this user may see them."""
    for folder in processes.iterdir():
        if not folder.name.isdecimal():
            continue
        arguments = _words(folder / "cmdline")
        if any("KvtierConnector" in each for each in arguments) and any(
            each.startswith(_TRANSFER) for each in arguments
        ):
            variables = dict(each.partition("=")[::2] for each in _words(folder / "environ"))
            seed = variables.get("PYTHONHASHSEED", "") if variables else None
            yield Engine(int(folder.name), arguments, seed)


def _words(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0"))
    except OSError:
        return ()


def _settings(engine: Engine) -> Iterator[Finding]:
    subject = f"engine, pid {engine.pid}"
    try:
        transfer: Any = json.loads(engine.option(_TRANSFER) or "")
    except ValueError:
        yield problem(subject, f"{_TRANSFER} is no JSON", "docs/integrations.md has it to copy")
        return
    policy = transfer.get("kv_load_failure_policy", "fail") if isinstance(transfer, dict) else ""
    if policy != "recompute":
        wanted = {**(transfer if isinstance(transfer, dict) else {})}
        wanted["kv_load_failure_policy"] = "recompute"
        yield problem(
            subject,
            f"kv_load_failure_policy is {policy!r}: a block that is gone when it is to be loaded "
            "would fail its request, and the connector does not start",
            f"{_TRANSFER} {shlex.quote(json.dumps(wanted))}",
        )
    else:
        yield ok(subject, "kv_load_failure_policy is recompute")
    hashes = engine.option(_HASHES) or "sha256"
    if hashes != _GOOD_HASHES:
        yield warning(
            subject,
            f"prefixes are hashed with {hashes}, which another Python does differently",
            f"{_HASHES} {_GOOD_HASHES}",
        )


def _seeds(engines: Sequence[Engine]) -> Iterator[Finding]:
    seeds: dict[str, list[int]] = {}
    for engine in engines:
        if engine.hash_seed is not None:
            seeds.setdefault(engine.hash_seed, []).append(engine.pid)
    if len(seeds) > 1:
        said = "; ".join(
            f"{seed or 'unset'} (pid {', '.join(map(str, pids))})" for seed, pids in seeds.items()
        )
        yield problem(
            "engines",
            f"PYTHONHASHSEED differs: {said}: they find nothing of each other",
            "start all with the same one, or all without",
        )


def _namespaces(namespaces: Sequence[NamespaceInfo]) -> Iterator[Finding]:
    for info in namespaces:
        subject = f"{info.spec.tenant}/{info.spec.name}@{info.layout_digest.hex()[:8]}"
        engine, _, number = info.spec.engine.partition(" ")
        if engine == "vllm" and number != _VLLM:
            yield judged_version(subject, number)
        algorithm = info.spec.hash_algorithm
        if algorithm.startswith("vllm-") and not algorithm.endswith("_cbor"):
            yield warning(
                subject,
                f"its hashes ({algorithm}) depend on the engine's Python",
                f"start its engines with {_HASHES} {_GOOD_HASHES}",
            )
