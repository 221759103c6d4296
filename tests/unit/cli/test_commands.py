"""Behaviour of the command line where no agent runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from kvtier.cli import connection
from kvtier.cli.app import app
from kvtier.cli.block_hash import parsed
from kvtier.cli.connection import Door, socket_path
from kvtier.cli.consent import described
from kvtier.cli.exit import ExitCode, exit_code
from kvtier.config import SYSTEM_FILE
from kvtier.config.load import config_keys
from kvtier.errors import (
    AgentUnavailableError,
    ConfigError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    KvtierError,
    NotFoundError,
)
from kvtier.v1.block_pb2 import NamespaceSpec
from kvtier.v1.cache_admin_pb2 import NamespaceInfo
from tests.docs.cli_page import commands
from tests.unit.cli.command import REPOSITORY, kvtier


def test_help_documents_the_exit_codes() -> None:
    done = kvtier("--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "0 done, 1 failed, 2 wrong usage or configuration, 3 agent not reached" in text


def test_every_command_has_help_an_example_and_json() -> None:
    """An agent writes a log, and its format is configured."""
    found = list(commands(typer.main.get_command(app)))
    assert len(found) > 30
    for path, command in found:
        name, options = " ".join(path), {each for one in command.params for each in one.opts}
        assert f"Example: {name}" in command.help, name
        assert "--json" in options or name == "kvtier agent", name
        first = command.help.partition("\n")[0]
        assert len(first) <= 64, f"{name}: {first!r} is cut in `kvtier --help`"


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


@pytest.mark.parametrize(
    "verb",
    [
        *(["stats"], ["namespaces"], ["sessions"], ["flush"], ["scrub"], ["drain"], ["resume"]),
        *(["evict", "a/b", "--yes"], ["invalidate", "a/b", "--yes"], ["warm", "a/b", "ab" * 16]),
    ],
)
def test_without_an_agent_verbs_say_how_to_start_one(verb: list[str], tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/admin.sock"
    done = kvtier(*verb, "--address", address)
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr == (
        f"kvtier: no agent at {address}: start one with `kvtier agent`, "
        "or name its socket with --address\n"
    )


def test_the_configuration_that_was_checked_is_named() -> None:
    checked = kvtier("config", "check", "configs/agent.yaml", "--set", "movers=3")
    assert checked.stdout.startswith("configs/agent.yaml is valid: ")
    twice = kvtier("config", "check", "configs/agent.yaml", "--config", "configs/agent.yaml")
    assert twice.returncode == ExitCode.USAGE


@pytest.mark.skipif(SYSTEM_FILE.exists(), reason="this machine has a configuration")
def test_checking_no_file_says_so() -> None:
    assert kvtier("config", "check").stdout == (
        f"no file ({SYSTEM_FILE} does not exist): "
        f"all {len(config_keys())} keys have their defaults\n"
    )


def test_a_group_that_does_not_exist_is_refused() -> None:
    done = kvtier("config", "check", "--set", "socket_group=no-such-group")
    assert done.returncode == ExitCode.USAGE
    assert "there is no group 'no-such-group'" in done.stderr


def test_the_version_is_an_option_too() -> None:
    assert kvtier("--version").stdout == kvtier("version").stdout


def test_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kvtier", "config", "show"],
            cwd=REPOSITORY,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == "kvtier: cannot write: No space left on device\n"


@pytest.mark.parametrize("address", ["", "here", "tcp:1", "unix:", "unix://host/path"])
def test_addresses_of_other_kinds_are_refused(address: str) -> None:
    with pytest.raises(InvalidRequestError, match="must be unix:PATH or HOST:PORT"):
        socket_path(address)


@pytest.mark.parametrize("address", ["/x/admin.sock", "unix:/x/admin.sock", "unix:///x/admin.sock"])
def test_an_absolute_path_is_an_address(address: str) -> None:
    assert socket_path(address) == Path("/x/admin.sock")


@pytest.mark.parametrize("name", ["worker.sock", "attach.sock"])
def test_sockets_of_workers_are_refused(name: str) -> None:
    done = kvtier("stats", "--address", f"unix:/x/{name}")
    assert done.returncode == ExitCode.USAGE
    assert "that is a workers' socket; this command needs admin.sock" in done.stderr


def test_a_socket_of_another_user_is_told_from_a_missing_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(connection, "door", lambda _: Door.DENIED)
    address = f"unix:{tmp_path}/admin.sock"
    with (
        pytest.raises(AgentUnavailableError, match="permission denied; it is for"),
        connection.admin(address, 1.0) as client,
    ):
        client.get_stats()


@pytest.mark.parametrize(
    ("hashes", "complaint"),
    [
        (["xyzx"], "HASH xyzx: write it in hexadecimal"),
        (["abc"], "HASH abc: 3 digits"),
        (["abcd"], "HASH abcd: 2 bytes; a hash has 16 to 64"),
        (["00" * 16, "00" * 32], "all hashes must have one length"),
    ],
)
def test_hashes_must_be_hex_of_one_length(hashes: list[str], complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        parsed(hashes)


def test_hashes_may_begin_with_0x() -> None:
    assert parsed(["0x" + "AB" * 16]) == [b"\xab" * 16]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["a/b", "--group", "0", "--yes"], "--group and --shard go with hashes"),
        (["a/b", "--shard", "1", "--yes"], "--group and --shard go with hashes"),
        (["a/b@", "--yes"], "'a/b@' names no namespace"),
        (["a/b"], "not a terminal: pass --yes"),
        (["a/b", "--json"], "--json does not ask: pass --yes"),
        (["a/b", "--older-than", "x"], "--older-than: 'x' is no duration"),
    ],
)
def test_evict_refuses_what_may_be_a_mistake(options: list[str], complaint: str) -> None:
    done = kvtier("evict", *options)
    assert done.returncode == ExitCode.USAGE
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["a/b@", "--yes"], "'a/b@' names no namespace"),
        (["a/b"], "not a terminal: pass --yes"),
        (["a/b", "--json"], "--json does not ask: pass --yes"),
    ],
)
def test_invalidate_refuses_what_may_be_a_mistake(options: list[str], complaint: str) -> None:
    done = kvtier("invalidate", *options)
    assert done.returncode == ExitCode.USAGE
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["flush", "host"], "'disk'"),
        (["evict", "a/b", "--yes", "--tier", "tape"], "'host', 'disk'"),
        (["scrub", "--rate", "fast"], "write 64GiB, 512MiB"),
        (["scrub", "--rate", "0"], "must be more than 0"),
        (["drain", "--grace", "-1"], "'--grace'"),
    ],
)
def test_an_option_that_cannot_be_is_refused(command: list[str], complaint: str) -> None:
    done = kvtier(*command)
    assert done.returncode == ExitCode.USAGE
    assert complaint in " ".join(done.stderr.split())


def test_several_namespaces_are_named_before_they_are_evicted() -> None:
    spec = NamespaceSpec(tenant="a", name="b")
    infos = [NamespaceInfo(spec=spec, layout_digest=bytes([n] * 32)) for n in (1, 2)]
    infos.append(NamespaceInfo(spec=NamespaceSpec(tenant="a", name="c"), layout_digest=b"\1" * 32))
    assert described("a/b", infos) == "2 namespaces (a/b@01010101, a/b@02020202)"
    assert described("a/b@01", infos) == "a/b@01"


def test_blocks_of_a_benchmark_have_a_smallest_size() -> None:
    done = kvtier("bench", "host", "--block-bytes", "1")
    assert done.returncode == ExitCode.USAGE
    assert "at least 4KiB" in done.stderr


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://127.0.0.1", "allowed are redis://"),
        ("redis+cluster://user:secret@127.0.0.1:1", "one server without TLS"),
        ("rediss://user:secret@127.0.0.1:1", "one server without TLS"),
        ("redis://user:secret@127.0.0.1:1", "refused"),
    ],
)
def test_a_server_that_cannot_be_measured_is_refused(url: str, complaint: str) -> None:
    done = kvtier("bench", "cluster", "--url", url)
    assert done.returncode == ExitCode.USAGE
    assert "--url" in done.stderr
    assert complaint in done.stderr
    assert "secret" not in done.stderr


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
