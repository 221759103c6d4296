"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
PROGRAM = (sys.executable, "-c", "from kvtier.cli import main; main()")


def kvtier(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Without a terminal, and without the variables of whoever runs the tests, or that commands
    have set in this process."""
    own = ("KVTIER_", "GRPC_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=REPOSITORY,
        env={**clean, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
