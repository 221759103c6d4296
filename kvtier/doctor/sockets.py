"""Where the agent's sockets are, or will be."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kvtier.config import AgentConfig
from kvtier.daemon.socket_directory import check_directory
from kvtier.doctor.finding import Finding, ok, problem
from kvtier.errors import ConfigError


def socket_findings(config: AgentConfig) -> Iterator[Finding]:
    """As the agent checks it when it starts; nothing is made."""
    path = config.socket_dir
    if path.exists():
        try:
            check_directory(path)
        except ConfigError as error:
            yield problem("sockets", str(error), "mend that, or choose another socket_dir")
            return
        yield ok("sockets", f"{path} is the agent's own")
        return
    parent = next(each for each in path.parents if each.exists())
    if os.access(parent, os.W_OK | os.X_OK):
        yield ok("sockets", f"{path} will be made")
    else:
        yield problem(
            "sockets",
            f"socket_dir {path}: {parent} cannot be written by uid {os.geteuid()}",
            "RuntimeDirectory= of its unit, or another socket_dir",
        )
