"""The systemd unit: by systemd's own tools, and its command under its restrictions."""

from __future__ import annotations

import configparser
import ctypes
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.deploy.command_lines import DEPLOY, check

UNIT = DEPLOY / "systemd" / "kvtier.service"
_PR_SET_MDWE, _NO_EXEC_GAIN = 65, 1

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


def _settings() -> dict[str, list[str]]:
    """Of all sections; a name may stand there several times."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def test_it_is_a_unit() -> None:
    parser = configparser.ConfigParser(strict=False, delimiters=("=",), interpolation=None)
    parser.read(UNIT)
    assert parser.sections() == ["Unit", "Service", "Install"]


def test_its_commands_are_those_of_the_program() -> None:
    settings = _settings()
    for name, verb in (("ExecStart", "agent"), ("ExecStop", "drain")):
        [line] = settings[name]
        program, *arguments = shlex.split(line.removeprefix("-"))
        assert program == "/opt/kvtier/bin/kvtier"
        assert check(arguments) == verb


def test_the_agent_finds_its_directories() -> None:
    settings = _settings()
    environment = dict(each.split("=", 1) for each in settings["Environment"])
    assert environment == {"KVTIER_SOCKET_DIR": f"/run/{settings['RuntimeDirectory'][0]}"}
    # Others than its user and group may not enter it: the agent refuses that.
    assert not int(settings["RuntimeDirectoryMode"][0], 8) & 0o027
    grace = shlex.split(settings["ExecStop"][0])[-1]
    assert float(grace) < int(settings["TimeoutStopSec"][0])


@needs_systemd
def test_systemd_takes_it(tmp_path: Path) -> None:
    there = tmp_path / UNIT.name
    there.write_text(UNIT.read_text().replace("/opt/kvtier/bin/kvtier", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", there],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    about = [line for line in done.stderr.splitlines() if "kvtier" in line]
    assert not about


@needs_systemd
def test_it_is_exposed_to_little() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r"Overall exposure level for kvtier.service: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= 2.0


def _restrict() -> None:
    """What of the unit's restrictions a process can put on itself."""
    os.umask(int(_settings()["UMask"][0], 8))
    # MemoryDenyWriteExecute; kernels before 6.3 do not know it.
    ctypes.CDLL(None).prctl(_PR_SET_MDWE, _NO_EXEC_GAIN, 0, 0, 0)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_the_agent_runs_under_its_restrictions_and_says_when_it_is_ready(tmp_path: Path) -> None:
    sockets, notices = tmp_path / "sockets", tmp_path / "notices"
    configuration = tmp_path / "agent.yaml"
    configuration.write_text("tiers: {host: {capacity: 16MiB}}\n")
    [line] = _settings()["ExecStart"]
    arguments = [
        str(configuration) if each == "/etc/kvtier/agent.yaml" else each
        for each in shlex.split(line)[1:]
    ]
    privileges = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notices))
        manager.settimeout(30.0)
        process = subprocess.Popen(
            [*privileges, sys.executable, "-m", "kvtier", *arguments],
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(notices),
                "KVTIER_SOCKET_DIR": str(sockets),
            },
            preexec_fn=_restrict,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert manager.recv(64) == b"READY=1"
            assert (sockets / "worker.sock").is_socket()
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
            assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
            process.send_signal(signal.SIGTERM)
            assert manager.recv(64) == b"STOPPING=1"
            _, log = process.communicate(timeout=30.0)
            assert process.returncode == 0, log
        finally:
            process.kill()
            process.communicate()


def test_its_limits_are_enough() -> None:
    assert int(_settings()["LimitNOFILE"][0]) >= 16384
    assert _settings()["LimitMEMLOCK"] == ["infinity"]  # what a GPU copies from is locked
