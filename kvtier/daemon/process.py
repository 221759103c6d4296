"""Runs an agent until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import sys

from kvtier import memory, scheduling
from kvtier.agent import logs
from kvtier.config import AgentConfig
from kvtier.daemon.agent import Agent
from kvtier.daemon.service_manager import notify
from kvtier.daemon.socket_directory import SocketDirectory
from kvtier.errors import ConfigError
from kvtier.tiers.disk.io import BlockIO

log = logging.getLogger(__name__)

DESCRIPTORS = 16384
FEWEST_DESCRIPTORS = 4096
_SLICE_SECONDS = 0.0002


def run(config: AgentConfig, disk_io: BlockIO | None = None) -> int:
    """Runs an agent until SIGTERM or SIGINT; returns the exit status."""
    logs.configure(config.log.level, config.log.format)
    _raise_descriptor_limit()
    tune_interpreter()
    asyncio.run(_serve(config, disk_io))
    return 0


def tune_interpreter() -> None:
    """What an agent's process needs beside the defaults."""
    memory.keep_large_buffers()
    # Movers wait at most this long for the interpreter after each call.
    sys.setswitchinterval(0.0001)
    # Of all threads: the event loop may wait for the interpreter, whose holder may wait for a
    # processor that a third one has for its slice, 3 ms by default.
    scheduling.set_time_slice(_SLICE_SECONDS)


async def _serve(config: AgentConfig, disk_io: BlockIO | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    directory = SocketDirectory(config.socket_dir, config.socket_group)
    agent = Agent(config, disk_io)
    try:
        await agent.start(directory)
        gc.collect()
        gc.freeze()
        # The event loop, before threads that move bytes. Those that gRPC needs are there by now.
        if not scheduling.precede_other_threads(_SLICE_SECONDS):
            log.info("the event loop has no priority over other threads: RLIMIT_NICE is too low")
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        log.info("stopping")
    finally:
        await agent.stop()
        directory.close()


def _raise_descriptor_limit() -> None:
    """Extents are descriptors: a large HOST has some hundreds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    if hard != infinite and hard < FEWEST_DESCRIPTORS:
        raise ConfigError(
            f"RLIMIT_NOFILE is at most {hard}; the agent needs {FEWEST_DESCRIPTORS}: "
            "raise `ulimit -Hn`"
        )
    wanted = DESCRIPTORS if hard == infinite else min(DESCRIPTORS, hard)
    if soft != infinite and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
