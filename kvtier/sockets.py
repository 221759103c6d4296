"""Where an agent's sockets are, for the agent and for those who look for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

WORKER_SOCKET: Final = "worker.sock"
ATTACH_SOCKET: Final = "attach.sock"
ADMIN_SOCKET: Final = "admin.sock"

MAX_SOCKET_PATH_BYTES: Final = 107
"""What fits into `sun_path` of Linux, without the closing zero."""


def default_socket_dir(environ: Mapping[str, str]) -> Path:
    """The directory that an agent of this user takes when none is configured."""
    if configured := environ.get("KVTIER_SOCKET_DIR"):
        return Path(configured)
    if os.geteuid() == 0:
        return Path("/run/kvtier")
    if runtime_dir := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime_dir) / "kvtier"
    return Path(f"/tmp/kvtier-{os.geteuid()}")


def default_address(environ: Mapping[str, str], socket: str) -> str:
    """The gRPC target of one of the agent's sockets, in the default directory."""
    return f"unix:{default_socket_dir(environ) / socket}"
