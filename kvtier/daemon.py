"""Puts the parts of an agent together and runs them."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import grp
import logging
import os
import resource
import secrets
import signal
import stat
import sys
import time
from collections.abc import Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kvtier import memory
from kvtier.agent import logs
from kvtier.agent.attach import AttachServer
from kvtier.agent.demotion import WritePolicy
from kvtier.agent.disk import Disk, DiskSettings
from kvtier.agent.grants import Grants, LeaseLimits
from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.loading import Loading
from kvtier.agent.mover import Mover
from kvtier.agent.namespaces import LayoutConflict, Namespaces
from kvtier.agent.placement import Placement
from kvtier.agent.promotion import Promotion
from kvtier.agent.sessions import AccessRule, Sessions
from kvtier.agent.storing import Storing
from kvtier.agent.upkeep import Upkeep
from kvtier.config import AgentConfig
from kvtier.core.lease import LeaseTable
from kvtier.errors import ConfigError
from kvtier.rpc.block_cache import BlockCacheService, Identity
from kvtier.rpc.cache_admin import CacheAdminService
from kvtier.rpc.direct import DirectCalls
from kvtier.rpc.server import Gate, Server
from kvtier.sockets import ADMIN_SOCKET, ATTACH_SOCKET, WORKER_SOCKET
from kvtier.tiers.host import HostTier
from kvtier.v1 import block_cache_pb2, cache_admin_pb2

log = logging.getLogger(__name__)

_BLOCK_CACHE = block_cache_pb2.DESCRIPTOR.services_by_name["BlockCache"]
_CACHE_ADMIN = cache_admin_pb2.DESCRIPTOR.services_by_name["CacheAdmin"]
_DESCRIPTORS = 16384
_FEWEST_DESCRIPTORS = 4096
_STOP_GRACE_SECONDS = 1.0
_SLICE_SECONDS = 0.0002


def run(config: AgentConfig) -> int:
    """Runs an agent until SIGTERM or SIGINT; returns the exit status."""
    logs.configure(config.log.level, config.log.format)
    _raise_descriptor_limit()
    tune_interpreter()
    asyncio.run(_serve(config))
    return 0


def tune_interpreter() -> None:
    """What an agent's process needs beside the defaults."""
    memory.keep_large_buffers()
    # Movers wait at most this long for the interpreter after each call.
    sys.setswitchinterval(0.0005)
    # Of all threads: the event loop may wait for the interpreter, whose holder may wait for a
    # processor that a third one has for its slice, 3 ms by default.
    memory.set_time_slice(_SLICE_SECONDS)


async def _serve(config: AgentConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    directory = SocketDirectory(config.socket_dir, config.socket_group)
    agent = Agent(config)
    try:
        await agent.start(directory)
        gc.collect()
        gc.freeze()
        await stop.wait()
        log.info("stopping")
    finally:
        await agent.stop()
        directory.close()


class SocketDirectory:
    """The directory of an agent's sockets, locked against a second agent."""

    def __init__(self, path: Path, group: str | int | None) -> None:
        self.path = path
        self.group_id = _group_id(group)
        try:
            self._make_or_check()
            self._lock = self._take_lock()
            os.chown(path, -1, self.group_id)
            os.chmod(path, self._mode)
        except OSError as error:
            raise ConfigError(f"socket_dir {path}: {error.strerror}") from error

    @property
    def _mode(self) -> int:
        return 0o700 if self.group_id == -1 else 0o750

    def _make_or_check(self) -> None:
        """Uses only a directory that is the agent's own: others' modes are not its to change."""
        try:
            self.path.mkdir(mode=0o700, parents=True)
            return
        except FileExistsError:
            status = self.path.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise ConfigError(f"socket_dir {self.path}: it is not a directory")
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o027:
            raise ConfigError(
                f"socket_dir {self.path}: it must belong to uid {os.geteuid()} and be closed to "
                "others (mode 0700); name one that does not exist yet, or chmod it"
            )

    def _take_lock(self) -> int:
        lock = os.open(self.path / "agent.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ConfigError(
                f"socket_dir {self.path}: another agent is running there; stop it, or choose "
                "another directory"
            ) from error
        return lock

    @property
    def worker_mode(self) -> int:
        return 0o600 if self.group_id == -1 else 0o660

    def close(self) -> None:
        """Removes the sockets; the lock file stays, or two agents could hold locks on two files."""
        for name in (WORKER_SOCKET, ATTACH_SOCKET, ADMIN_SOCKET):
            (self.path / name).unlink(missing_ok=True)
        os.close(self._lock)


class Agent:
    """One node's agent. Its parts are attributes, for tests and for `kvtier bench`."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.identity = Identity(
            epoch=secrets.randbits(64) or 1,
            version=version("kvtier"),
            max_batch_blocks=config.limits.max_batch_blocks,
            attach_socket=ATTACH_SOCKET,
        )
        self.mover = Mover(config.movers)
        host = config.tiers.host
        self.host = HostTier(host.capacity, policy=host.policy)
        self.placement = Placement(
            self.host,
            lambda extent, call, *args: self.mover.run(call, *args),
            spare_bytes=lambda: memory.available_bytes() - host.memory_reserve,
        )
        self.disk: Disk | None = None
        if config.tiers.disk.paths:
            self.disk = Disk(_disk_settings(config), self.host)
        tiers = [self.host, *([self.disk.tier] if self.disk else [])]
        self.leases = LeaseTable(time.monotonic)
        self.grants = Grants(tiers, self.leases, _lease_limits(config))
        self.namespaces = Namespaces(
            tiers,
            limit=config.limits.max_namespaces,
            layout_conflict=LayoutConflict(config.layout_conflict),
        )
        self.sessions = Sessions(
            self.namespaces,
            self.leases,
            limit=config.limits.max_sessions,
            wall_clock=time.time,
            release=self.grants.release_slots,
            on_gone=lambda attachment: self.attach.forget(attachment),
        )
        self.promotion = Promotion(self.placement, [self.disk.reader] if self.disk else [])
        self.loading = Loading(self.grants, self.promotion)
        self.storing = Storing(self.grants, self.placement, self.mover)
        if self.disk:
            self.loading.on_used.append(self.disk.demotion.used)
            self.storing.on_stored.append(self.disk.demotion.stored)
        self.lifecycle = Lifecycle()
        self.upkeep = Upkeep(
            self.host,
            self.mover,
            self.disk,
            self.namespaces,
            self.sessions,
            self.grants,
            self.lifecycle,
            self._set_ready,
        )
        self.gate = Gate(config.limits.max_calls)
        self.block_cache = BlockCacheService(
            self.identity,
            self.sessions,
            self.grants,
            self.loading,
            self.storing,
            self.lifecycle,
            [tier.tier for tier in tiers],
        )
        self.attach = AttachServer(
            self.sessions,
            self.host.arena,
            _access_rules(config),
            self.identity.epoch,
            DirectCalls(_BLOCK_CACHE, self.block_cache, self.gate).answer,
        )
        self.placement.on_retired = self.attach.announce_retired
        self._servers: list[Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, directory: SocketDirectory) -> None:
        """Listens on all sockets and serves."""
        admin = CacheAdminService(
            self.identity,
            self.gate,
            self.upkeep,
            self.namespaces,
            self.sessions,
            self.leases,
        )
        if self.disk:
            await self.disk.restore_namespaces(self.namespaces)
        worker_server = Server(self.gate)
        worker_server.add(_BLOCK_CACHE, self.block_cache)
        admin_server = Server(Gate(self.config.limits.max_calls))
        admin_server.add(_CACHE_ADMIN, admin)
        self._servers = [worker_server, admin_server]
        mode, group_id = directory.worker_mode, directory.group_id
        (directory.path / ATTACH_SOCKET).unlink(missing_ok=True)
        self.attach.listen(directory.path / ATTACH_SOCKET, mode, group_id)
        await worker_server.listen(directory.path / WORKER_SOCKET, mode, group_id)
        await admin_server.listen(directory.path / ADMIN_SOCKET, 0o600, -1)
        capacity, available = self.config.tiers.host.capacity, memory.available_bytes()
        if capacity > available:
            log.warning(
                "tiers.host.capacity is %d MiB, and %d MiB of memory are available: HOST stops "
                "growing when memory_reserve is reached",
                capacity >> 20,
                available >> 20,
            )
        log.info(
            "serving on %s; HOST %d MiB; pid %d; epoch %016x",
            directory.path,
            capacity >> 20,
            os.getpid(),
            self.identity.epoch,
        )

        self._spawn(self._recover())

    async def _recover(self) -> None:
        """Reads what is on DISK while the agent serves; then it is ready."""
        if self.disk:
            await self.disk.recover(self.namespaces)
        await self._announce_ready(not self.lifecycle.is_draining)

    async def _announce_ready(self, is_ready: bool) -> None:
        for server in self._servers:
            await server.set_ready(is_ready)

    def _set_ready(self, is_ready: bool) -> None:
        self._spawn(self._announce_ready(is_ready))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("background work failed", exc_info=task.exception())

    async def stop(self) -> None:
        """Lets calls in flight end for a moment, flushes DISK, then closes everything."""
        await asyncio.gather(*(server.stop(_STOP_GRACE_SECONDS) for server in self._servers))
        self.attach.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.promotion.close()
        if self.disk:
            await self.disk.stop()
        await self.placement.close()
        self.grants.close()
        self.mover.close()
        self.host.close()
        log.info("stopped")


def _disk_settings(config: AgentConfig) -> DiskSettings:
    disk = config.tiers.disk
    return DiskSettings(
        paths=disk.paths,
        capacity_bytes=disk.capacity,
        policy=disk.policy,
        write_policy=WritePolicy(disk.write_policy),
        after_hits=disk.write_after_hits,
        min_free_bytes=disk.min_free,
        depth=disk.io_depth,
        timeout_seconds=disk.io_timeout,
        max_in_flight_bytes=disk.max_in_flight,
        scrub_bytes_per_second=disk.scrub_rate,
    )


def _lease_limits(config: AgentConfig) -> LeaseLimits:
    return LeaseLimits(
        default_seconds=config.leases.default_seconds,
        max_seconds=config.leases.max_seconds,
        max_hold_seconds=config.leases.max_hold_seconds,
        max_share=config.leases.max_share,
    )


def _access_rules(config: AgentConfig) -> list[AccessRule]:
    if not config.workers:
        return [AccessRule(tenants=("*",), uid=os.geteuid())]
    return [AccessRule(tuple(rule.tenants), rule.uid, rule.gid) for rule in config.workers]


def _group_id(group: str | int | None) -> int:
    if group is None:
        return -1
    if isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfigError(f"socket_group: there is no group {group!r}") from error


def _raise_descriptor_limit() -> None:
    """Extents are descriptors: a large HOST has some hundreds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    if hard != infinite and hard < _FEWEST_DESCRIPTORS:
        raise ConfigError(
            f"RLIMIT_NOFILE is at most {hard}; the agent needs {_FEWEST_DESCRIPTORS}: "
            "raise `ulimit -Hn`"
        )
    wanted = _DESCRIPTORS if hard == infinite else min(_DESCRIPTORS, hard)
    if soft != infinite and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
