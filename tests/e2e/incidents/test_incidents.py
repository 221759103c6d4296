"""Ten incidents with real causes, each found with the commands and words of docs/operations.md."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kvtier import Client, NamespaceSpec, Tier
from kvtier.cli.app import app
from kvtier.client.admin import AdminClient
from kvtier.errors import KvtierError
from kvtier.testing import AgentProcess
from kvtier.testing.redis_servers import RedisServer
from kvtier.testing.slow_agent import SlowAgentProcess
from kvtier.testing.worker_process import WorkerProcess
from kvtier.v1.cache_admin_pb2 import Stats, TierStats
from tests.e2e.incidents.documented import PAGE, Look, incidents
from tests.faults import scripts
from tests.faults.blocks import KIB, MIB, hashes_of, judge, payloads, spec_of, store
from tests.faults.waiting import wait_until
from tests.unit.cli.command import kvtier

_SECONDS = 20.0
_LLAMA = spec_of("llama")
_DEVICE_BYTES = 96 * MIB


class Scene:
    """An agent with something wrong about it, and somebody who reads the page."""

    def __init__(self, settings: Mapping[str, object], agent: AgentProcess) -> None:
        self.settings = settings
        self.agent = agent
        self.admin = AdminClient(agent.admin_address, timeout_seconds=20.0)
        self.client = Client(agent.address, timeout_seconds=5.0, worker="engine")

    def follow(self, incident: str, **names: str) -> None:
        """Types what the page says, and finds what it says, with no line of trouble above it."""
        for look in incidents(PAGE.read_text())[incident]:
            self._look(look, names)

    def _look(self, look: Look, names: dict[str, str]) -> None:
        done = kvtier(*look.arguments(**names), **self.environ)
        output = done.stdout + done.stderr
        missing = look.missing(output)
        assert not missing, f"{look.command}: no line {missing!r} in\n{output}"

    @property
    def environ(self) -> dict[str, str]:
        """The agent's configuration, as its operator has it."""
        return {
            "KVTIER_ADMIN_ADDRESS": self.agent.admin_address,
            "KVTIER_SOCKET_DIR": str(self.agent.directory),
            **{
                f"KVTIER_{key.replace('.', '__').upper()}": str(value)
                for key, value in self.settings.items()
            },
        }

    def store(self, spec: NamespaceSpec, sequence: str, count: int) -> list[bytes]:
        assert store(self.client.namespace(spec), sequence, count) == count
        return hashes_of(sequence, count)

    def first_trouble(self) -> str:
        """What `kvtier top` has below its heading."""
        lines = kvtier("top", "--once", "--interval", "0.1", **self.environ).stdout.splitlines()
        return lines[2]

    def until(self, condition: Callable[[Stats], object]) -> None:
        wait_until(lambda: condition(self.admin.get_stats()), _SECONDS, 0.02)

    def until_attached(self) -> None:
        """Until the client has found the agent again."""

        def is_heard() -> bool:
            try:
                self.client.namespace(_LLAMA).lookup(hashes_of("nothing", 1))
            except KvtierError:
                return False
            return True

        wait_until(is_heard, _SECONDS, 0.02)

    def close(self) -> None:
        self.client.close()
        self.admin.close()


@contextmanager
def scene(kind: type[AgentProcess] = AgentProcess, /, **settings: object) -> Iterator[Scene]:
    """Settings are named with __ for the dot."""
    keys: dict[str, object] = {"tiers.host.capacity": "8MiB", "tiers.host.memory_reserve": 0}
    keys |= {key.replace("__", "."): value for key, value in settings.items()}
    with kind(settings=keys) as agent:
        made = Scene(keys, agent)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def disk(tmp_path: Path) -> dict[str, object]:
    return {
        "tiers__disk__paths": tmp_path / "disk",
        "tiers__disk__capacity": "32MiB",
        "tiers__disk__min_free": 0,
    }


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    path = tmp_path / "device"
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(path), b"tmpfs", 0, f"size={_DEVICE_BYTES}".encode()):
        pytest.skip(f"mount is not permitted: {os.strerror(ctypes.get_errno())}")
    try:
        yield path
    finally:
        assert libc.umount2(bytes(path), 0) == 0, os.strerror(ctypes.get_errno())


def test_every_incident_of_the_page_is_planted_here() -> None:
    prefix = "test_incident_"
    planted = {name.removeprefix(prefix) for name in globals() if name.startswith(prefix)}
    written = {name.lower().replace(" ", "_") for name in incidents(PAGE.read_text())}
    assert planted == written
    assert len(written) == 10


def test_every_command_of_the_page_exists() -> None:
    text = " ".join(PAGE.read_text().split())
    verbs = set(re.findall(r"(?:`|\$ |sh )kvtier ([a-z]+)", text))
    assert len(verbs) > 10
    assert verbs <= {each.name for each in app.registered_commands + app.registered_groups}


def test_incident_full_disk(device: Path) -> None:
    limits = {"tiers__disk__capacity": "32MiB", "tiers__disk__min_free": "16MiB"}
    with scene(tiers__disk__paths=device / "disk", **limits) as it:
        it.store(_LLAMA, "early", 16)
        it.admin.flush()
        other = device / "other"
        with other.open("wb") as file:
            status = os.statvfs(device)
            left = status.f_bavail * status.f_frsize
            os.posix_fallocate(file.fileno(), 0, left - 4 * MIB)
        turns = itertools.count()

        def is_degraded(stats: Stats) -> bool:
            it.store(_LLAMA, f"late {next(turns)}", 4)
            return stats.tiers[1].state == TierStats.DEGRADED

        it.until(is_degraded)
        it.follow("Full disk")
        assert "DISK is degraded" in it.first_trouble()
        other.unlink()
        it.until(lambda stats: not stats.tiers[1].reason)


def test_incident_dead_redis() -> None:
    with (
        RedisServer(maxmemory_bytes=64 * MIB) as server,
        scene(tiers__cluster__url=server.url) as it,
    ):
        it.store(_LLAMA, "a", 8)
        it.admin.flush(Tier.CLUSTER)
        server.kill()
        it.until(lambda stats: stats.tiers[1].reason)
        it.follow("Dead Redis")
        assert "CLUSTER is unavailable" in it.first_trouble()
        server.start()
        it.until(lambda stats: not stats.tiers[1].reason)


def test_incident_wrong_layout() -> None:
    with scene() as it:
        one, other = (replace(_LLAMA, dtype=dtype) for dtype in ("bf16", "fp16"))
        hashes = it.store(one, "a", 4)
        it.store(other, "b", 4)
        digest = other.layout_digest.hex()[:8]
        it.follow("Wrong layout", DIGEST=digest, HASH=hashes[0].hex())
        assert "dtype (bf16, fp16)" in it.first_trouble()


def test_incident_hung_worker() -> None:
    with (
        scene() as it,
        WorkerProcess(scripts.store_slowly, it.agent.address, "late", 32, 0.1) as worker,
    ):
        assert worker.hear() == 32
        worker.pause()
        it.until(lambda stats: stats.tiers[0].quarantined_bytes)
        it.follow("Hung worker")
        assert f"kill -CONT {worker.pid}" in it.first_trouble()
        worker.resume()
        worker.hear()
        it.until(lambda stats: not stats.tiers[0].quarantined_bytes)


def test_incident_tiny_arena() -> None:
    with scene(tiers__host__capacity="1MiB", tiers__host__policy="lru") as it:
        first = it.store(_LLAMA, "first", 8)
        for number in range(8):
            it.store(_LLAMA, str(number), 8)
        it.follow("Tiny arena", HASH=first[0].hex())
        assert "HOST is small for this load" in it.first_trouble()
        assert kvtier("tier", "set", "host.capacity=16MiB", **it.environ).returncode == 0
        for number in range(8):
            it.store(_LLAMA, str(number), 8)
        assert it.client.namespace(_LLAMA).lookup(hashes_of("0", 8)).matched == 8


def test_incident_corrupted_slab(disk: dict[str, object]) -> None:
    with scene(**disk) as it:
        hashes = it.store(_LLAMA, "a", 8)
        it.admin.flush()
        it.agent.stop()
        _damage(Path(str(disk["tiers__disk__paths"])), payloads(_LLAMA, hashes[3:4])[0].tobytes())
        it.agent.start()
        it.follow("Corrupted slab", HASH=hashes[3].hex())
        assert "DISK: 1 block damaged" in it.first_trouble()
        it.until_attached()
        verdict = judge(it.client.namespace(_LLAMA), hashes)
        assert (verdict.right, verdict.wrong) == (7, 0)


def _damage(path: Path, payload: bytes) -> None:
    """Turns a bit in the middle of a block."""
    for data in path.glob("slab-*.data"):
        content = data.read_bytes()
        place = content.find(payload)
        if place >= 0:
            with data.open("r+b") as file:
                file.seek(place + len(payload) // 2)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))
            return
    pytest.fail("the block is in no slab")


def test_incident_wrong_hash_seed() -> None:
    with scene() as it:
        for seed in ("0", "1"):
            extra = {"hash_seed": hashlib.sha256(seed.encode()).hexdigest()[:16]}
            it.store(replace(_LLAMA, extra=extra, hash_algorithm="vllm-sha256_cbor"), seed, 4)
        it.follow("Wrong hash seed")
        assert "extra.hash_seed" in it.first_trouble()


def test_incident_quota_hit() -> None:
    rules = '{"team-a/*": {"host": {"limit": "25%"}}}'
    with scene(namespaces=rules, tiers__host__policy="lru") as it:
        spec = replace(_LLAMA, tenant="team-a", block_bytes=(64 * KIB,))
        first = it.store(spec, "first", 8)
        for number in range(8):
            it.store(spec, str(number), 8)
        it.follow("Quota hit", HASH=first[0].hex())
        assert "rule team-a/* is at its limit" in it.first_trouble()


def test_incident_cold_restart() -> None:
    with scene() as it:
        hashes = it.store(_LLAMA, "a", 8)
        it.agent.stop()
        it.agent.start()
        it.until_attached()
        it.follow("Cold restart", HASH=hashes[0].hex())
        assert "the agent started" in it.first_trouble()


def test_incident_slow_tier(disk: dict[str, object]) -> None:
    with ExitStack() as stack:
        it = stack.enter_context(scene(SlowAgentProcess, **disk))
        assert isinstance(it.agent, SlowAgentProcess)
        hashes = it.store(_LLAMA, "a", 8)
        it.admin.flush()
        it.agent.slow_down(latency_seconds=0.1)
        namespace = it.client.namespace(_LLAMA)
        for _ in range(3):  # a single late read is doubted
            it.admin.evict_blocks(_LLAMA.label, tiers=[Tier.HOST])
            assert judge(namespace, hashes).wrong == 0
        it.follow("Slow tier")
        assert "DISK is slow" in it.first_trouble()
        it.agent.heal()
        for _ in range(4):
            it.admin.evict_blocks(_LLAMA.label, tiers=[Tier.HOST])
            judge(namespace, hashes)
        assert "slow" not in it.first_trouble()
