"""Behaviour of the command line where no agent runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.cli.exit import ExitCode, exit_code
from kvtier.errors import (
    AgentUnavailableError,
    ConfigError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    KvtierError,
    NotFoundError,
)

REPOSITORY = Path(__file__).parents[3]


def kvtier(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KVTIER_")}
    return subprocess.run(
        [sys.executable, "-c", "from kvtier.cli import main; main()", *arguments],
        cwd=REPOSITORY,
        env={**clean, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_documents_the_exit_codes() -> None:
    done = kvtier("--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "0 done, 1 failed, 2 wrong usage or configuration, 3 agent not reached" in text


@pytest.mark.parametrize(
    "verb", ["agent", "stats", "namespaces", "sessions", "evict", "demo", "version"]
)
def test_every_verb_has_help(verb: str) -> None:
    assert f"Usage: kvtier {verb}" in kvtier(verb, "--help").stdout


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["stats", "--no-such-option"], ["evict"]])
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    done = kvtier(*arguments)
    assert done.returncode == ExitCode.USAGE
    assert "Error" in done.stderr


def test_a_wrong_configuration_is_code_2_and_one_line() -> None:
    done = kvtier("config", "check", "--set", "movers=0")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("kvtier: --set movers=0: movers = 0 is not allowed")
    assert done.stderr.count("\n") == 1


def test_the_shipped_configuration_is_valid() -> None:
    done = kvtier("config", "check", "--config", "configs/agent.yaml")
    assert (done.returncode, done.stderr) == (0, "")


def test_config_show_tells_where_values_come_from() -> None:
    done = kvtier("config", "show", "--json", "--set", "movers=3", KVTIER_LOG__LEVEL="debug")
    shown = json.loads(done.stdout)
    assert shown["config"]["movers"] == 3
    assert shown["origin"]["movers"] == "--set"
    assert shown["origin"]["log.level"] == "KVTIER_LOG__LEVEL"
    assert shown["origin"]["tiers.host.capacity"] == "default"


def test_output_into_a_pipe_has_no_colours() -> None:
    done = kvtier("config", "show", TERM="xterm-256color")
    assert "tiers.host.capacity" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("verb", [["stats"], ["namespaces"], ["sessions"], ["evict", "a/b"]])
def test_without_an_agent_verbs_say_how_to_start_one(verb: list[str], tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/admin.sock"
    done = kvtier(*verb, "--address", address)
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr == (
        f"kvtier: no agent at {address}: start one with `kvtier agent`, "
        "or name its socket with --address\n"
    )


@pytest.mark.parametrize("hashes", [["xyz"], ["00", "0000"]])
def test_hashes_must_be_hex_of_one_length(hashes: list[str]) -> None:
    options = [part for text in hashes for part in ("--hash", text)]
    assert kvtier("evict", "a/b", *options).returncode == ExitCode.USAGE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(), ExitCode.USAGE),
        (InvalidRequestError(), ExitCode.USAGE),
        (AgentUnavailableError(), ExitCode.UNREACHABLE),
        (DeadlineExceededError(), ExitCode.UNREACHABLE),
        (NotFoundError(), ExitCode.FAILED),
        (InternalError(), ExitCode.FAILED),
    ],
)
def test_errors_have_exit_codes(error: KvtierError, code: ExitCode) -> None:
    assert exit_code(error) == code
