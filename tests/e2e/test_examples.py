"""The examples, as their documentation says to run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from kvtier.testing import AgentProcess

_EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(script: str, *arguments: str, address: str | None = None) -> str:
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    environment.pop("KVTIER_ADDRESS", None)
    if address is not None:
        environment["KVTIER_ADDRESS"] = address
    done = subprocess.run(
        [sys.executable, _EXAMPLES / script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_worker_of_ones_own(tmp_path: Path) -> None:
    source = (_EXAMPLES / "minimal_worker.py").read_text()
    assert len(source.splitlines()) <= 80
    with AgentProcess(tmp_path) as agent:
        first = _run("minimal_worker.py", address=agent.address)
        second = _run("minimal_worker.py", address=agent.address)
        other = _run(
            "minimal_worker.py", "Another text of the same length or so. ", address=agent.address
        )
    alone = _run("minimal_worker.py", address=f"unix:{tmp_path / 'nowhere.sock'}")
    assert "768 tokens, 0 of them loaded" in first
    assert "768 tokens, 768 of them loaded" in second
    assert " 0 of them loaded" in other
    assert "nothing is loaded: no agent at" in alone
    digests = [re.findall("KV ([0-9a-f]{8})", each) for each in (first, second, alone, other)]
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_a_conversation_is_not_read_again(tmp_path: Path) -> None:
    picture = tmp_path / "chat.png"
    output = _run("transformers/chat.py", "--turns", "3", "--plot", str(picture))
    turns = re.findall(r"turn +\d+: +(\d+) tokens, +(\d+) restored", output)
    assert len(turns) == 3
    for (before, _), (_, restored) in pairwise(turns):
        assert int(restored) >= int(before)  # and what was answered
    assert picture.read_bytes().startswith(b"\x89PNG")
