"""An agent's admin socket, with upkeep that does what a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

from kvtier.access.scope import ALL, Scope
from kvtier.agent.serving.admission import Admission, AdmissionLimits
from kvtier.core.block import BlockKeys, Tier
from kvtier.core.lease import LeaseTable
from kvtier.core.namespace import NamespaceSpec
from kvtier.core.rules import NamespaceRule
from kvtier.errors import InvalidRequestError, KvtierError, NotFoundError
from kvtier.rpc.block_cache import Identity
from kvtier.rpc.cache_admin import CacheAdminService
from kvtier.rpc.server import Server
from kvtier.tiers.cluster.nodes import NodeRecord
from kvtier.v1 import cache_admin_pb2

_CACHE_ADMIN = cache_admin_pb2.DESCRIPTOR.services_by_name["CacheAdmin"]
_SECONDS = 10.0


@dataclass
class ScriptedUpkeep:
    """Answers what it is given, and remembers what it was asked."""

    asked: list[tuple[object, ...]] = field(default_factory=list)
    error: KvtierError | None = None
    scrubbed: list[SimpleNamespace] = field(default_factory=list)
    drained: list[SimpleNamespace] = field(default_factory=list)
    tiers: list[Any] = field(default_factory=list)
    pinned: int = 0
    is_draining: bool = False
    devices: tuple[str, ...] = ()
    known_nodes: list[NodeRecord] = field(default_factory=list)
    blocks: dict[Tier, int] = field(default_factory=lambda: {Tier.HOST: 3, Tier.DISK: 5})

    def _hear(self, *what: object) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    async def flush(self, tier: Tier) -> int:
        self._hear("flush", tier)
        return 3 << 20

    async def scrub(self, tier: Tier, rate_bytes: int) -> AsyncIterator[SimpleNamespace]:
        self._hear("scrub", tier, rate_bytes)
        for each in self.scrubbed:
            yield each

    async def drain(self, grace_seconds: float) -> AsyncIterator[SimpleNamespace]:
        self._hear("drain", grace_seconds)
        for each in self.drained:
            yield each

    def resume(self) -> None:
        self._hear("resume")

    async def invalidate(self, selector: str) -> tuple[int, int]:
        self._hear("invalidate", selector)
        return 1, sum(self.blocks.values())

    async def evict(
        self,
        selector: str,
        keys: Callable[[Any], BlockKeys | None],
        tiers: frozenset[Tier],
        dry_run: bool,
        force: bool,
        min_age_seconds: float,
    ) -> SimpleNamespace:
        assert keys(None) is None
        assert not min_age_seconds
        self._hear("evict", selector, tiers & set(self.blocks), dry_run)
        gone = sum(self.blocks[tier] for tier in tiers if tier in self.blocks)
        pinned = 0 if force else self.pinned
        return SimpleNamespace(gone=gone - pinned, deferred=0, pinned=pinned)

    async def nodes(self) -> list[NodeRecord]:
        self._hear("nodes")
        return self.known_nodes

    def holdings(self, namespace: Any) -> dict[Tier, Any]:
        return {
            Tier.HOST: SimpleNamespace(
                limit_bytes=3 << 20, guaranteed_bytes=1 << 20, occupied_bytes=2 << 20
            ),
            Tier.DISK: SimpleNamespace(limit_bytes=None, guaranteed_bytes=0, occupied_bytes=5),
        }

    def stats(self, selector: str, scope: Scope = ALL) -> list[Any]:
        """A tier with more than its capacity gets smaller each time that it is asked for."""
        for each in self.tiers:
            excess = getattr(each, "allocated_bytes", 0) - getattr(each, "capacity_bytes", 0)
            if excess > 0 and ("resize", each.tier, each.capacity_bytes) in self.asked:
                each.allocated_bytes -= min(excess, 1 << 30)
        return self.tiers

    def resize(self, tier: Tier, capacity_bytes: int) -> Any:
        self._hear("resize", tier, capacity_bytes)
        [found] = [each for each in self.tiers if each.tier is tier]
        found.capacity_bytes = capacity_bytes
        return found


class ScriptedPins:
    """Pins what it is asked for, two blocks of it at most."""

    def __init__(self) -> None:
        self.made: list[SimpleNamespace] = []
        self.asked: list[tuple[int, float, str]] = []
        self.error: KvtierError | None = None

    def __iter__(self) -> Iterator[SimpleNamespace]:
        return iter(self.made)

    def remaining_seconds(self, pin: SimpleNamespace) -> float:
        return 3600.5

    async def create(
        self,
        namespace: Any,
        keys: BlockKeys,
        *,
        ttl_seconds: float,
        reason: str,
        patience_seconds: float | None,
    ) -> SimpleNamespace:
        if self.error is not None:
            raise self.error
        self.asked.append((len(keys.hashes), ttl_seconds, reason))
        count = min(2, len(keys.hashes))
        pin = SimpleNamespace(
            pin_id=f"{len(self.asked):016x}",
            namespace=namespace,
            reason=reason,
            block_count=count,
            pinned_bytes=count * 4096,
        )
        self.made.append(pin)
        return pin

    def delete(self, pin_id: str) -> SimpleNamespace:
        for pin in self.made:
            if pin.pin_id == pin_id:
                self.made.remove(pin)
                return pin
        raise NotFoundError(f"no pin {pin_id!r}")


class OneNamespace:
    """default/m, with a size class on each of two tiers."""

    def __init__(self) -> None:
        size_class = SimpleNamespace(
            residency=range(3),
            used_slots=4,
            slot_bytes=4096,
            pinned=SimpleNamespace(size_bytes=4096),
        )
        self.only = SimpleNamespace(
            spec=NamespaceSpec(name="m", block_bytes=(4096,)),
            label="default/m@0123abcd",
            groups=(size_class, size_class),
            namespace_id=1,
            generation_id=b"g",
            session_count=0,
            usage=SimpleNamespace(compute_seconds_saved=0.0),
            rule=NamespaceRule("default/*", 3600.0),
            tiers={Tier.HOST: (size_class, size_class), Tier.DISK: (size_class,)},
            devices=(),
            classes_of=lambda tier: [size_class] * (2 if tier is Tier.DISK else 1),
        )

    def __iter__(self) -> Iterator[SimpleNamespace]:
        return iter([self.only])

    def select(self, selector: str, scope: Scope = ALL) -> list[SimpleNamespace]:
        if selector and not self.only.spec.matches(selector):
            raise NotFoundError(f"no namespace {selector!r}")
        return [self.only]

    def select_one(self, selector: str) -> SimpleNamespace:
        if not selector:
            raise InvalidRequestError("namespace is empty")
        return self.select(selector)[0]

    def sibling_differences(self, spec: NamespaceSpec) -> list[str]:
        return []


class ScriptedAgent:
    """Serves in a thread; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "admin.sock"
        self.upkeep = ScriptedUpkeep()
        self.pins = ScriptedPins()
        self._is_serving = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    def set_ready(self, is_ready: bool) -> None:
        change = self._server.set_ready(is_ready)
        asyncio.run_coroutine_threadsafe(change, self._loop).result(_SECONDS)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._server = Server(Admission(AdmissionLimits()))
        service: Any = CacheAdminService  # what it is given only looks like an agent's parts
        self._server.add(
            _CACHE_ADMIN,
            service(
                Identity(7, "1.2", 8192, "attach.sock"),
                Admission(AdmissionLimits()),
                self.upkeep,
                OneNamespace(),
                [],
                LeaseTable(lambda: 0.0),
                self.pins,
            ),
        )
        await self._server.listen(self.path, 0o600, -1)
        self._is_serving.set()
        await self._stop.wait()
        await self._server.stop(0)

    def __enter__(self) -> ScriptedAgent:
        self._thread.start()
        assert self._is_serving.wait(_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_SECONDS)
