"""What bash completes: verbs, options, and the namespaces of the agent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.command import REPOSITORY
from tests.unit.cli.scripted_agent import ScriptedAgent

_SCRIPT = """
eval "$(kvtier --show-completion bash)"
complete_words() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _kvtier_completion kvtier
    echo "${COMPREPLY[@]}"
}
complete_words kvtier ev
complete_words kvtier evict --down
complete_words kvtier evict d
complete_words kvtier stats --namespace x
complete_words kvtier cluster n
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_verbs_options_and_namespaces(tmp_path: Path) -> None:
    command = tmp_path / "kvtier"
    main = "from kvtier.cli import main; main()"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{main}" "$@"\n')
    command.chmod(0o700)
    with ScriptedAgent(tmp_path) as agent:
        done = subprocess.run(
            ["bash", "--norc", "-c", _SCRIPT],
            env={
                **os.environ,
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "PYTHONPATH": str(REPOSITORY),
                "KVTIER_ADMIN_ADDRESS": agent.address,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["events evict", "--down-to", "default/m", "", "nodes"]
