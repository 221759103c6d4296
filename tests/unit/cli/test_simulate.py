"""`kvtier simulate` and `kvtier plan` as scripts and people use them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kvtier.cli.app import app
from kvtier.cli.exit import ExitCode, exit_code
from kvtier.errors import KvtierError
from tests.unit.cli.command import REPOSITORY, kvtier
from tests.unit.sim.trace_files import RECORDING, Lines, mooncake, recorded, write

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    chains = [[0, 1, 2], [0, 3], [0, 1, 2, 4], [5], [0, 1]]
    lines = (
        mooncake(1000 * each, 512 * len(ids) - (each == 3), ids) for each, ids in enumerate(chains)
    )
    return str(write(tmp_path / "trace.jsonl.gz", lines))


def invoke(*arguments: str) -> Result:
    """In this process, which is faster."""
    return CliRunner().invoke(app, arguments)


def complaint_of(done: Result) -> str:
    """What wrong usage or configuration says; `main` prints the latter."""
    assert done.exit_code
    if isinstance(done.exception, KvtierError):
        assert exit_code(done.exception) == ExitCode.USAGE
        return str(done.exception)
    assert done.exit_code == ExitCode.USAGE
    return " ".join(done.stderr.split())


def results(*arguments: str) -> list[dict[str, Any]]:
    done = invoke("simulate", *arguments, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert set(document) == {"results"}
    return list(document["results"])


def test_a_result_for_each_trace_policy_and_capacity(trace: str, tmp_path: Path) -> None:
    other = str(write(tmp_path / "other", [RECORDING, recorded(0, [1, 2]), recorded(1, [1, 2])]))
    found = results(trace, other, "--policy", "lru,hd", "--policy", "belady", "--capacity=50%,100%")
    assert [(each["trace"], each["policy"], each["capacity_fraction"]) for each in found] == [
        (name, policy, fraction)
        for name in ("trace.jsonl.gz", "other")
        for policy in ("lru", "hd", "belady")
        for fraction in (0.5, 1.0)
    ]
    everything = found[1]
    assert everything["capacity_blocks"] == everything["unique_blocks"] == 6
    assert (everything["requested_blocks"], everything["hit_blocks"]) == (12, 6)
    assert (everything["block_hit_rate"], everything["requests"]) == (0.5, 5)
    assert everything["token_hit_rate"] == 6 * 512 / (12 * 512 - 1)
    assert everything["tiers"][0]["tier"] == "host"
    assert everything["written_bytes_per_day"] is None
    assert found[-1]["capacity_bytes"] == 2 * 4096


def test_two_tiers_with_costs(trace: str) -> None:
    (found,) = results(
        *(trace, "--tiers", "host=256MiB,disk=1GiB", "--policy=lru", "--model", "llama-3-8b"),
        *("--prefill-tokens-per-second=1000", "--host-gbps=10", "--disk-gbps=5"),
    )
    assert [each["capacity_blocks"] for each in found["tiers"]] == [4, 16]
    assert found["tiers"][1]["written_bytes"] == 5 * (64 << 20)
    assert 0 < found["saved_seconds"] < found["hit_tokens"] / 1000


def test_people_get_a_table(trace: str) -> None:
    done = kvtier("simulate", trace, "--capacity", "50%", "--block-bytes", "1MiB")
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    assert lines[0] == "trace.jsonl.gz:"
    assert all(word in lines[1] for word in ("policy", "block hits", "written", "a day"))
    assert [line.split()[0] for line in lines[3:]] == ["hd", "lru", "belady"]
    assert max(map(len, lines)) <= 80
    assert done.stderr == ""


def test_small_blocks_are_regrouped(tmp_path: Path) -> None:
    lines = [mooncake(0, 64 * 9, range(9), block_size=64), mooncake(1, 64, [0], block_size=64)]
    path = str(write(tmp_path / "small", lines))
    (found,) = results(path, "--policy=lru", "--capacity=100%", "--block-tokens=512")
    assert (found["requested_blocks"], found["unique_blocks"]) == (1, 1)


def test_a_picture(trace: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    file = tmp_path / "hits.png"
    done = kvtier("simulate", trace, "--policy=lru", "--plot", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert file.read_bytes().startswith(PNG)


def test_a_picture_needs_an_extra(trace: str, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        f"sys.argv = ['kvtier', 'simulate', {trace!r}, '--plot', {str(tmp_path / 'a.png')!r}]\n"
        "from kvtier.cli import main; main()"
    )
    done = run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == "kvtier: --plot needs matplotlib: pip install 'kvtier[plot]'\n"


def test_lines_that_do_not_begin_at_the_beginning_are_counted(tmp_path: Path) -> None:
    lines: Lines = [RECORDING, recorded(0, [1]), recorded(0, [7], position=5)]
    done = invoke("simulate", str(write(tmp_path / "cut", lines)), "--policy=lru", "--json")
    assert json.loads(done.stdout)["results"][0]["requested_blocks"] == 1
    assert done.stderr == "cut: 1 line left out: not from the beginning of a sequence\n"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--capacity", "1"], "Give --block-bytes or --model"),
        (["--capacity", "0%"], "for --capacity"),
        (["--tiers", "disk=1%"], "there is no host=SIZE"),
        (["--policy", "best"], "no policy 'best'; write one of lru"),
        (["--tiers", "host=1%,disk=2%", "--disk-policy", "belady"], "is a ceiling"),
        (["--block-tokens", "700"], "cannot be regrouped to 700"),
        (["--block-bytes", "0"], "more than 0"),
        (["--block-bytes", "1MiB", "--model", "llama-3-8b"], "not together"),
        (["--model", "nonsense"], "--model nonsense: not known"),
        (["--host-gbps", "1"], "says nothing without --prefill-tokens-per-second"),
        (["--prefill-tokens-per-second", "1", "--host-gbps", "1"], "how large are the blocks"),
        (["--plot", "/no/such/directory/a.png"], "there is no directory"),
        (["--plot", "a.mp3"], "end it with one of"),
    ],
)
def test_wrong_options_are_named(trace: str, options: list[str], complaint: str) -> None:
    done = invoke("simulate", trace, *options)
    assert complaint in complaint_of(done)
    assert done.stdout == ""


def test_a_bad_line_is_code_2_and_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "bad", ["{}"])
    done = kvtier("simulate", str(path))
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith(f"kvtier: {path}:1: not a trace")
    assert done.stderr.count("\n") == 1


def planned(*arguments: str) -> dict[str, Any]:
    done = invoke("plan", *arguments, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    return dict(json.loads(done.stdout))


def test_a_plan() -> None:
    found = planned("--model", "llama-3-8b", "--context", "8192", "--batch", "16")
    assert (found["bytes_per_token"], found["block_bytes"]) == (131_072, 2 << 20)
    assert (found["context_bytes"], found["batch_bytes"]) == (1 << 30, 16 << 30)
    assert (found["sessions"], found["host_capacity"], found["disk_capacity"]) == (
        160,
        "58GiB",
        "176GiB",
    )


def test_a_plan_of_what_is_described() -> None:
    assert planned("--layers=61", "--mla-dim=576")["bytes_per_token"] == 70_272
    windowed = planned(
        *("--layers=4", "--kv-heads=2", "--head-dim=64", "--window=1024", "--window-layers=3"),
        *("--dtype", "fp8", "--context", "4096"),
    )
    assert windowed["context_bytes"] == 256 * (4096 + 3 * 1024)


def test_people_read_where_the_sizes_come_from() -> None:
    text = invoke("plan", "--model", "llama-3-8b").stdout
    assert "tiers.host.capacity" in text
    assert "16 running and 40 soon returning sessions" in text
    assert "(--reuse)" in text
    assert "deepseek-v3" in invoke("plan", "--models").stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "give either --model, or --layers"),
        (["--model", "llama-3-8b", "--layers", "3"], "give either --model, or --layers"),
        (["--layers", "3"], "needs --kv-heads and --head-dim, or --mla-dim"),
        (["--layers", "3", "--mla-dim", "5", "--window", "9"], "not together with"),
        (["--layers=3", "--kv-heads=1", "--head-dim=8", "--window-layers=1"], "needs --window"),
        (["--model", "llama-3-8b", "--dtype", "int3"], "no dtype 'int3'"),
        (["--model", "llama-3-8b", "--context", "8"], "less than --block-tokens"),
        (["--model", "llama-3-8b", "--reuse", "2"], "'--reuse'"),
        (["--model", "/no/such/config.json"], "No such file"),
    ],
)
def test_wrong_plans_are_refused(options: list[str], complaint: str) -> None:
    assert complaint in complaint_of(invoke("plan", *options))


@pytest.mark.parametrize("verb", ["simulate", "plan"])
def test_help_has_an_example(verb: str) -> None:
    assert f"Example: kvtier {verb}" in " ".join(invoke(verb, "--help").stdout.split())


@pytest.mark.parametrize("heavy", ["numpy", "matplotlib", "rich", "pydantic"])
def test_the_command_line_starts_without(heavy: str) -> None:
    program = f"import sys, kvtier.cli.app; sys.exit({heavy!r} in sys.modules)"
    done = run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode() or f"{heavy} is imported"
