"""What an operator does to a running agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial

from kvtier.access.scope import ALL, Scope
from kvtier.agent.lifecycle import Lifecycle
from kvtier.agent.moving.mover import Mover
from kvtier.agent.operating.auto_sizing import AutoSizing
from kvtier.agent.operating.renewals import Renewals
from kvtier.agent.operating.resizing import Resizing
from kvtier.agent.operating.stats import (
    TierStats,
    add_sizing,
    cluster_stats,
    disk_stats,
    gpu_stats,
    host_stats,
)
from kvtier.agent.operating.trimming import Trimming
from kvtier.agent.placing.evicting import Evicted, below, evict
from kvtier.agent.sessions.grants import Grants
from kvtier.agent.sessions.namespaces import Namespace, Namespaces, next_generation
from kvtier.agent.sessions.sessions import Sessions
from kvtier.agent.tiers.cluster import Cluster
from kvtier.agent.tiers.disk import Disk, ScrubProgress
from kvtier.agent.tiers.gpu import Gpu
from kvtier.core.block import BlockKeys, Tier
from kvtier.core.cause import Cause
from kvtier.core.lease import LeaseKind
from kvtier.errors import AgentUnavailableError, NotFoundError
from kvtier.tiers.cluster.nodes import NodeRecord
from kvtier.tiers.holding import Holding
from kvtier.tiers.host import HostTier

_REPORT_SECONDS = 0.2
_HERE = frozenset(Tier) - {Tier.CLUSTER}
_NO_CLUSTER = "this agent has no CLUSTER tier: set tiers.cluster.url"

KeysOf = Callable[[Namespace], BlockKeys | None]


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """What keeps an agent from being idle."""

    session_count: int
    lease_count: int
    unflushed_bytes: int
    is_done: bool = False


class Upkeep:
    """Flush, scrub, drain, evict, invalidate, count. Errors are KvtierErrors."""

    def __init__(
        self,
        host: HostTier,
        mover: Mover,
        disk: Disk | None,
        cluster: Cluster | None,
        namespaces: Namespaces,
        sessions: Sessions,
        grants: Grants,
        lifecycle: Lifecycle,
        on_ready: Callable[[bool], None],
        resizing: Resizing,
        gpu: Gpu | None = None,
    ) -> None:
        self._host = host
        self._mover = mover
        self._gpu = gpu
        self._disk = disk
        self._cluster = cluster
        self._namespaces = namespaces
        self._sessions = sessions
        self._grants = grants
        self._lifecycle = lifecycle
        self._on_ready = on_ready
        self._resizing = resizing
        #: For how long loads do not wait for a tier yet.
        self.distrusted_seconds: Callable[[Tier], float] = lambda tier: 0.0
        self._renewals = Renewals(
            disk,
            cluster,
            lambda namespace: self._evict_here(
                namespace, None, _HERE, force=True, cause=Cause.INVALIDATED
            ),
            self._revoke_reservations,
        )
        if cluster is not None:
            cluster.on_generation = self._renewals.renew

    def stats(self, selector: str, scope: Scope = ALL) -> list[TierStats]:
        """One entry for each tier, for each device of GPU, the fastest first; over the namespaces
        of the scope."""
        namespaces = self._namespaces.select(selector, scope)
        host = host_stats(self._host, self._grants.leases, self._mover, namespaces)
        if self.auto_sizing is not None:
            add_sizing(host, self.auto_sizing)
        found = gpu_stats(self._gpu, namespaces) if self._gpu is not None else []
        found.append(host)
        if self._disk is not None:
            found.append(disk_stats(self._disk, namespaces))
        if self._cluster is not None:
            found.append(cluster_stats(self._cluster, namespaces))
        for each in found:
            each.distrusted_seconds = self.distrusted_seconds(each.tier)
        return found

    @property
    def is_draining(self) -> bool:
        return self._lifecycle.is_draining

    @property
    def auto_sizing(self) -> AutoSizing | None:
        """None if HOST's capacity is configured."""
        return self._resizing.automatic

    def resize(self, tier: Tier, capacity_bytes: int) -> TierStats:
        """Gives a tier another capacity; as it is then. It may still have to shrink."""
        self._resizing.resize(tier, capacity_bytes)
        return next(each for each in self.stats("") if each.tier is tier)

    def holdings(self, namespace: Namespace) -> dict[Tier, Holding]:
        """What it has of each tier with quotas, with all others under the same rule."""
        tiers = [self._host, *([self._disk.tier] if self._disk is not None else [])]
        return {tier.tier: tier.holding(namespace.namespace_id) for tier in tiers}

    @property
    def devices(self) -> list[str]:
        """Names of GPU's, by number."""
        return [each.name for each in self._gpu.devices] if self._gpu is not None else []

    def _disk_for(self, tier: Tier) -> Disk:
        if tier is not Tier.DISK:
            raise NotFoundError(f"{tier.name} keeps nothing that could be flushed or scrubbed")
        if self._disk is None:
            raise NotFoundError("this agent has no DISK tier: set tiers.disk.paths")
        return self._disk

    async def flush(self, tier: Tier) -> int:
        """Returns when all that is stored is on the tier and synced: bytes written for it."""
        if tier is Tier.CLUSTER and self._cluster is None:
            raise NotFoundError(_NO_CLUSTER)
        try:
            if tier is Tier.CLUSTER and self._cluster is not None:
                return await self._cluster.flush()
            return await self._disk_for(tier).demotion.flush()
        except OSError as error:
            raise AgentUnavailableError(f"{tier.name} cannot be flushed: {_said(error)}") from error

    async def scrub(self, tier: Tier, rate_bytes: int) -> AsyncIterator[ScrubProgress]:
        """Verifies every block; reports until it is done."""
        disk = self._disk_for(tier)
        try:
            async for progress in disk.scrub(rate_bytes):
                yield progress
        except OSError as error:
            raise AgentUnavailableError(f"DISK cannot be read: {_said(error)}") from error

    # Draining.

    async def drain(self, grace_seconds: float) -> AsyncIterator[DrainProgress]:
        """Refuses new work, waits for leases, revokes them, flushes; reports until it is done."""
        self._lifecycle.is_draining = True
        self._on_ready(False)
        deadline = time.monotonic() + grace_seconds
        while self._leases() and time.monotonic() < deadline and self._lifecycle.is_draining:
            yield self._progress()
            await asyncio.sleep(min(_REPORT_SECONDS, max(0.0, deadline - time.monotonic())))
        if not self._lifecycle.is_draining:
            raise AgentUnavailableError("the drain was ended by a resume")
        for lease in list(self._grants.leases):
            self._grants.revoke(lease)
        yield self._progress()
        if self._disk is not None:
            await self.flush(Tier.DISK)
        if self._cluster is not None:
            with suppress(AgentUnavailableError):  # others lose hits, nobody loses blocks
                await self.flush(Tier.CLUSTER)
        yield DrainProgress(len(self._sessions), self._leases(), 0, is_done=True)

    def _leases(self) -> int:
        return sum(lease.kind is not LeaseKind.QUARANTINE for lease in self._grants.leases)

    def _progress(self) -> DrainProgress:
        slower = [each for each in (self._disk, self._cluster) if each is not None]
        waiting = sum(each.demotion.waiting_bytes for each in slower)
        return DrainProgress(len(self._sessions), self._leases(), waiting)

    def resume(self) -> None:
        """Takes work again."""
        self._lifecycle.is_draining = False
        self._on_ready(self._disk is None or self._disk.is_recovered)

    # Removing.

    async def evict(
        self,
        selector: str,
        keys: KeysOf,
        tiers: frozenset[Tier],
        *,
        dry_run: bool,
        force: bool = False,
        min_age_seconds: float = 0.0,
    ) -> Evicted:
        """Removes blocks, and what continues them; a restart does not bring them back.

        What is pinned stays in HOST and on DISK, but with `force`. A dry run counts nothing in a
        CLUSTER that does not answer. With `min_age_seconds`, what is
        younger stays too; CLUSTER is not among `tiers` then.
        """
        total = Evicted()
        for namespace in self._namespaces.select(selector):
            if dry_run:
                evicted = await self._evictable(
                    namespace,
                    keys(namespace),
                    tiers,
                    force=force,
                    min_age_seconds=min_age_seconds,
                )
            elif min_age_seconds:
                evicted = await self._evict_here(
                    namespace,
                    keys(namespace),
                    tiers,
                    force=force,
                    min_age_seconds=min_age_seconds,
                )
            else:
                evicted = await self._evict(namespace, keys(namespace), tiers, force=force)
            total.add(evicted)
        return total

    async def _evictable(
        self,
        namespace: Namespace,
        keys: BlockKeys | None,
        tiers: frozenset[Tier],
        *,
        force: bool,
        min_age_seconds: float,
    ) -> Evicted:
        """What would go."""
        evicted = await evict(
            namespace,
            keys,
            tiers,
            dry_run=True,
            spare_pinned=not force,
            min_age_seconds=min_age_seconds,
        )
        if self._cluster is not None and Tier.CLUSTER in tiers:
            blocks = None if keys is None else [each async for each in below(namespace, keys)]
            with suppress(OSError):
                evicted.gone += await self._cluster.count(namespace, blocks)
        return evicted

    async def trim(
        self, selector: str, tier: Tier, used_bytes: int, *, dry_run: bool
    ) -> tuple[Evicted, int]:
        """Has namespaces use no more of HOST or DISK than so much: what went, and what they use."""
        namespaces = self._namespaces.select(selector)
        trimming = Trimming(namespaces, tier)
        disk = self._disk_for(tier) if tier is Tier.DISK else None
        if dry_run:
            return trimming.expected(used_bytes), trimming.used_bytes
        if disk is None:
            return await trimming.trim(used_bytes), trimming.used_bytes
        await disk.recovered()
        try:
            async with AsyncExitStack() as stack:
                for namespace in namespaces:
                    await stack.enter_async_context(disk.erasing(namespace))
                evicted = await trimming.trim(used_bytes)
        except OSError as error:
            raise AgentUnavailableError(
                f"blocks are evicted until the next restart only: DISK: {_said(error)}"
            ) from error
        return evicted, trimming.used_bytes

    async def _evict(
        self,
        namespace: Namespace,
        keys: BlockKeys | None,
        tiers: frozenset[Tier],
        *,
        force: bool,
    ) -> Evicted:
        if self._cluster is None or Tier.CLUSTER not in tiers:
            return await self._evict_here(namespace, keys, tiers, force=force)
        blocks = None if keys is None else [each async for each in below(namespace, keys)]
        writer, removed, failure = self._cluster.writer, 0, ""
        before, unerased = writer.ended_count, writer.unerased_count
        try:
            # First, or a block could be brought from there again.
            removed = await self._cluster.remove(namespace, blocks)
        except OSError as error:
            failure = _said(error)
        evicted = await self._evict_here(namespace, keys, tiers, force=force)
        await writer.settled()
        try:
            if writer.ended_count > before:  # perhaps of these, from here, meanwhile
                removed += await self._cluster.remove(namespace, blocks)
        except OSError as error:
            failure = _said(error)
        if writer.unerased_count > unerased or writer.has_overdue:
            failure = failure or "what was being written cannot be removed"
        if failure:
            raise AgentUnavailableError(f"blocks are evicted here only: CLUSTER: {failure}")
        evicted.gone += removed
        return evicted

    async def _evict_here(
        self,
        namespace: Namespace,
        keys: BlockKeys | None,
        tiers: frozenset[Tier],
        *,
        force: bool,
        min_age_seconds: float = 0.0,
        cause: Cause = Cause.REMOVED,
    ) -> Evicted:
        run = partial(
            evict,
            namespace,
            keys,
            tiers,
            spare_pinned=not force,
            min_age_seconds=min_age_seconds,
            cause=cause,
        )
        if self._disk is None or Tier.DISK not in tiers:
            return await run()
        await self._disk.recovered()
        try:
            async with self._disk.erasing(namespace) as forget:
                return await run(forget=forget)
        except OSError as error:
            raise AgentUnavailableError(
                f"blocks are evicted until the next restart only: DISK: {_said(error)}"
            ) from error

    async def invalidate(self, selector: str) -> tuple[int, int]:
        """Gives namespaces a new generation id: how many namespaces and blocks that concerned.

        Returns when other nodes can hear of it.
        """
        namespaces, blocks = self._namespaces.select(selector), 0
        before = [(namespace, namespace.generation_id) for namespace in namespaces]
        for namespace in namespaces:
            generation_id = next_generation(namespace.generation_id)
            evicted = await self._renewals.renew(namespace, generation_id)
            blocks += evicted.gone + evicted.deferred
        if self._cluster is not None:
            try:
                await self._cluster.publish(namespaces)
            except OSError as error:
                raise AgentUnavailableError(
                    f"invalidated on this node only, others hear of it later: CLUSTER: "
                    f"{_said(error)}"
                ) from error
            for namespace, generation_id in before:
                with suppress(OSError):  # nobody finds them any more; they end by their TTL
                    await self._cluster.remove_generation(namespace, generation_id)
        return len(namespaces), blocks

    def _revoke_reservations(self, namespace: Namespace) -> None:
        for lease in list(self._grants.leases):
            is_of_it = lease.namespace_id == namespace.namespace_id
            if is_of_it and lease.kind is LeaseKind.RESERVATION:
                self._grants.revoke(lease)

    async def close(self) -> None:
        """Before tiers stop."""
        await self._renewals.close()

    async def nodes(self) -> list[NodeRecord]:
        """The agents that share this one's cluster."""
        if self._cluster is None:
            raise NotFoundError(_NO_CLUSTER)
        try:
            return await self._cluster.nodes()
        except OSError as error:
            raise AgentUnavailableError(f"CLUSTER: {_said(error)}") from error


def _said(error: OSError) -> str:
    return error.strerror or str(error)
