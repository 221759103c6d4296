"""The parts of one agent with CLUSTER, on a real server and a real loop, wired as in
`kvtier.daemon`."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.moving.mover import Mover
from kvtier.agent.moving.promotion import Promotion
from kvtier.agent.operating.resizing import Resizing
from kvtier.agent.operating.upkeep import Upkeep
from kvtier.agent.placing.placement import Placement
from kvtier.agent.serving.loading import Loading
from kvtier.agent.serving.storing import Storing
from kvtier.agent.sessions.grants import Granted, Grants, LeaseLimits
from kvtier.agent.sessions.namespaces import Namespace, Namespaces
from kvtier.agent.sessions.sessions import Access, Session, Sessions
from kvtier.agent.tiers.cluster import Cluster, ClusterOptions
from kvtier.core.ages import Ages
from kvtier.core.block import BlockKeys, Match, Tier
from kvtier.core.lease import LeaseTable
from kvtier.core.namespace import NamespaceSpec
from kvtier.core.rules import NamespaceRule
from kvtier.testing import ManualClock, is_payload_for
from kvtier.tiers.arena import cell_of
from kvtier.tiers.cluster.codec import Codec
from kvtier.tiers.cluster.nodes import NodeRecord
from kvtier.tiers.cluster.sealing import Sealer
from kvtier.tiers.cluster.storage import ClusterStorage
from kvtier.tiers.cluster.topology import ClusterSettings
from kvtier.tiers.cluster.url import parse_url
from kvtier.tiers.host import HostTier
from kvtier.tiers.size_class import SizeClass
from tests.unit.agent.disk_agent import OK, PAGE, SPEC, payload_of, until
from tests.unit.agent.gated_blocks import Gate, GatedBlocks

PREFIX = "kvtier"
_TTL_SECONDS = 600
_EVERYTHING = frozenset(Tier)


class ClusterAgent:
    """One agent without sockets; an async context manager that starts and closes it.

    Without `is_started` it has no heartbeat. `audit` says what holds whenever nothing is under way.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "one",
        timeout_seconds: float = 5.0,
        host_pages: int = 256,
        is_started: bool = True,
        rules: Sequence[NamespaceRule] = (),
        ages: Ages | None = None,
        **options: Any,
    ) -> None:
        options = {"lookup_seconds": 5.0, "heartbeat_seconds": 0.1, **options}
        self.gate = Gate()
        self.mover = Mover(1)
        self.host = HostTier(host_pages * PAGE, ages=ages)
        self.placement = Placement(
            self.host,
            lambda extent, call, *args: self.mover.run(call, *args),
            spare_bytes=lambda: 1 << 40,
        )
        sealer = Sealer({}, None)
        settings = ClusterSettings(parse_url(url), connect_timeout_seconds=timeout_seconds)
        self.storage = ClusterStorage(
            settings,
            sealer,
            key_prefix=PREFIX,
            ttl_seconds=_TTL_SECONDS,
            timeout_seconds=timeout_seconds,
        )
        blocks = GatedBlocks(
            self.storage.store, sealer, key_prefix=PREFIX, ttl_seconds=_TTL_SECONDS
        )
        blocks.gate = self.gate
        self.storage.blocks = blocks
        self.cluster = Cluster(
            self.storage,
            ClusterOptions(timeout_seconds=timeout_seconds, **options),
            self.host,
            codec_of=lambda label: Codec.NONE,
            describe=lambda: NodeRecord(name, name, 1, "1", 1, "unix:/nowhere", 0.0, 1.0),
        )
        self.leases = LeaseTable(ManualClock())
        self.grants = Grants([self.host], self.leases, LeaseLimits(max_share=1.0))
        self.namespaces = Namespaces([self.host], limit=64, rules=rules)
        self.sessions = Sessions(
            self.namespaces,
            self.leases,
            limit=64,
            wall_clock=ManualClock(),
            release=self.grants.release_slots,
            on_gone=self.host.arena.forget_holder,
        )
        self.promotion = Promotion(self.placement, [self.cluster.reader])
        self.loading = Loading(self.grants, self.promotion)
        self.storing = Storing(self.grants, self.placement, self.mover)
        self.loading.on_used.append(self.cluster.demotion.used)
        self.storing.on_stored.append(self.cluster.demotion.stored)
        self.upkeep = Upkeep(
            self.host,
            self.mover,
            None,
            self.cluster,
            self.namespaces,
            self.sessions,
            self.grants,
            Lifecycle(),
            lambda is_ready: None,
            Resizing(self.placement, None, [self.cluster.demotion]),
        )
        self.cluster.watch(self.namespaces)
        self._is_started = is_started
        self._sessions: dict[str, Session] = {}

    async def __aenter__(self) -> ClusterAgent:
        if self._is_started:
            self.cluster.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.gate.open()
        await self.promotion.close()
        await self.cluster.stop()
        await self.placement.close()
        self.grants.close()
        self.mover.close()
        self.host.close()

    # Workers.

    def session(self, spec: NamespaceSpec = SPEC) -> Session:
        if spec.label not in self._sessions:
            access = Access(frozenset({"*"}))
            token = self.sessions.attach(bytes(16), 0, 0, 1, access).token
            self._sessions[spec.label], _ = self.sessions.open(token, spec, "")
        return self._sessions[spec.label]

    def namespace(self, spec: NamespaceSpec = SPEC) -> Namespace:
        return self.session(spec).namespace

    def host_class(self, spec: NamespaceSpec = SPEC) -> SizeClass:
        return self.namespace(spec).groups[0]

    async def store(self, keys: BlockKeys, spec: NamespaceSpec = SPEC) -> list[int]:
        """Stores with the bytes that belong to the keys."""
        session, table = self.session(spec), self.host_class(spec).table
        granted = await self.storing.reserve(session, [keys])
        for part in granted.lease.parts:
            for block_hash, slot in zip(keys.hashes, part.slots, strict=True):
                if slot >= 0:
                    cell = cell_of(table, slot)[: spec.block_bytes[0]]
                    np.copyto(cell, payload_of(spec, keys.lane, block_hash))
        if granted.lease.size_bytes:
            await self.storing.commit(session, granted.lease.lease_id)
        return granted.statuses

    async def lookup(
        self,
        keys: BlockKeys,
        tiers: frozenset[Tier] = frozenset(),
        match: Match = Match.PRESENCE,
        spec: NamespaceSpec = SPEC,
    ) -> int:
        """How many are present."""
        [found], _ = await self.loading.lookup(self.session(spec), [keys], match=match, tiers=tiers)
        return sum(found.presence)

    async def found(self, keys: BlockKeys) -> None:
        """Returns when a lookup finds all of them."""
        while await self.lookup(keys) != len(keys.hashes):
            await self.quiet()

    async def load(self, keys: BlockKeys, spec: NamespaceSpec = SPEC, **how: Any) -> list[int]:
        """The statuses; every block that came is judged to the last byte."""
        granted = await self.loading.load(self.session(spec), [keys], **how)
        self._judge(granted, keys, spec)
        self.grants.release(granted.lease)
        return granted.statuses

    def _judge(self, granted: Granted, keys: BlockKeys, spec: NamespaceSpec) -> None:
        host, size = self.host_class(spec), spec.block_bytes[0]
        scope = f"{spec.label} {keys.lane.group} {keys.lane.shard}"
        for block_hash, status, extent_id, slot in zip(
            keys.hashes, granted.statuses, granted.extents, granted.slots, strict=True
        ):
            if status == OK:
                [extent] = [each for each in host.extents if each.extent_id == extent_id]
                cell = cell_of(host.table, extent.base + slot)[:size]
                assert is_payload_for(cell, block_hash, size, namespace=scope)

    async def evict(
        self, keys: BlockKeys | None = None, tiers: frozenset[Tier] = _EVERYTHING
    ) -> None:
        await self.upkeep.evict(SPEC.label, lambda namespace: keys, tiers, dry_run=False)

    # What is where.

    def in_host(self, keys: BlockKeys, spec: NamespaceSpec = SPEC) -> int:
        rows = self.host_class(spec).find_many(keys.lane, keys.hashes)
        return sum(row >= 0 for row in rows)

    def leave_host(self, keys: BlockKeys, spec: NamespaceSpec = SPEC) -> None:
        """As if HOST had evicted them."""
        host = self.host_class(spec)
        for row in reversed(host.find_many(keys.lane, keys.hashes)):
            if row >= 0:
                host.forget(row)

    async def store_in_cluster(self, keys: BlockKeys) -> None:
        """Stores, and leaves it in the cluster alone."""
        await self.store(keys)
        await self.cluster.demotion.flush()
        self.leave_host(keys)

    async def agreed(self, spec: NamespaceSpec = SPEC) -> None:
        """Returns when the nodes agree on the generation."""
        namespace = self.namespace(spec)
        await until(lambda: self.cluster.tenures.of(namespace).is_agreed)

    async def quiet(self) -> None:
        """Returns when no call about blocks is in a thread's hands."""
        await until(
            lambda: not self.cluster.moving.queue_depth and not self.cluster.demotion.waiting_bytes
        )
        await self.cluster.writer.settled()

    def audit(self) -> None:
        """References are leases, and nothing else; books are right."""
        self.host.check_integrity()
        assert not [lease for lease in self.leases if lease.parts and lease.size_bytes]
        for namespace in self.namespaces:
            assert not any(namespace.groups[0].table.references)
