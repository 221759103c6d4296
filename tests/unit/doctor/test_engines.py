"""What `kvtier doctor` finds out about engines, from real processes and from namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvtier.doctor.engines import Engine, engine_findings, judged_version, running_engines
from kvtier.doctor.finding import Finding, Verdict
from kvtier.v1.block_pb2 import NamespaceSpec
from kvtier.v1.cache_admin_pb2 import NamespaceInfo

_GOOD = {"kv_connector": "KvtierConnector", "kv_load_failure_policy": "recompute"}
_CBOR = ("--prefix-caching-hash-algo", "sha256_cbor")


@contextmanager
def _engine(*arguments: str, **environ: str) -> Iterator[int]:
    """A process that was started as an engine is; its pid."""
    program = "import sys; print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"}, **environ},
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


def _findings(pid: int) -> list[Finding]:
    return [each for each in engine_findings([]) if each.subject == f"engine, pid {pid}"]


def test_an_engine_with_the_right_options_is_well() -> None:
    with _engine("--kv-transfer-config", json.dumps(_GOOD), *_CBOR) as pid:
        assert [each.verdict for each in _findings(pid)] == [Verdict.OK]


def test_the_failure_policy_must_be_recompute() -> None:
    config = {"kv_connector": "KvtierConnector", "kv_role": "kv_both"}
    with _engine(f"--kv-transfer-config={json.dumps(config)}", *_CBOR) as pid:
        [finding] = _findings(pid)
    assert finding.verdict is Verdict.PROBLEM
    assert "kv_load_failure_policy is 'fail'" in finding.found
    assert json.dumps({**config, "kv_load_failure_policy": "recompute"}) in finding.advice


def test_pickled_hashes_are_warned_of() -> None:
    with _engine("--kv-transfer-config", json.dumps(_GOOD)) as pid:
        verdicts = {each.verdict: each for each in _findings(pid)}
    assert "sha256" in verdicts[Verdict.WARNING].found
    assert verdicts[Verdict.WARNING].advice.endswith("sha256_cbor")


def test_seeds_that_differ_are_named_with_their_processes() -> None:
    options = ("--kv-transfer-config", json.dumps(_GOOD), *_CBOR)
    with _engine(*options) as one, _engine(*options, PYTHONHASHSEED="7") as other:
        [finding] = [each for each in engine_findings([]) if each.subject == "engines"]
    assert finding.verdict is Verdict.PROBLEM
    assert str(one) in finding.found
    assert str(other) in finding.found
    assert "7 (pid" in finding.found


def test_another_users_environment_is_not_guessed(tmp_path: Path) -> None:
    folder = tmp_path / "12"
    folder.mkdir()
    words = ["vllm", "--kv-transfer-config", json.dumps(_GOOD)]
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    [engine] = running_engines(tmp_path)
    assert engine == Engine(12, tuple(words), None)


def test_the_version_must_be_the_connectors() -> None:
    assert judged_version("vLLM", "0.32.1+cpu").verdict is Verdict.OK
    assert judged_version("vLLM", "0.31.0").verdict is Verdict.PROBLEM


def test_namespaces_tell_of_engines_that_are_elsewhere() -> None:
    spec = NamespaceSpec(tenant="a", name="m", engine="vllm 0.30", hash_algorithm="vllm-sha256")
    found = [
        each
        for each in engine_findings([NamespaceInfo(spec=spec, layout_digest=b"\1" * 32)])
        if each.subject == "a/m@01010101"
    ]
    assert [each.verdict for each in found] == [Verdict.PROBLEM, Verdict.WARNING]
    assert "0.30" in found[0].found
    assert "vllm-sha256" in found[1].found
