"""New generations of namespaces: what was stored before is not found any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from kvtier.agent.placing.evicting import Evicted, evict
from kvtier.agent.sessions.namespaces import Namespace
from kvtier.agent.tiers.cluster import Cluster
from kvtier.agent.tiers.disk import Disk
from kvtier.core.block import Tier
from kvtier.core.cause import Cause
from kvtier.errors import AgentUnavailableError

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0


class Renewals:
    """At the operator's wish, or because another node did it.

    Nothing of a namespace is read from slower tiers or written to them while it is renewed: old
    blocks must not get there under the new generation. A renewal that has begun ends, whatever
    becomes of who asked for it. `evict_here` removes all blocks of a namespace from this node;
    `revoke_reservations` sees to it that what is being stored is not committed any more.
    """

    def __init__(
        self,
        disk: Disk | None,
        cluster: Cluster | None,
        evict_here: Callable[[Namespace], Awaitable[Evicted]],
        revoke_reservations: Callable[[Namespace], None],
    ) -> None:
        self._disk = disk
        self._cluster = cluster
        self._evict_here = evict_here
        self._revoke_reservations = revoke_reservations
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Evicted]] = set()

    async def renew(self, namespace: Namespace, generation_id: bytes) -> Evicted:
        """Returns when nothing older is found on this node, after a restart either.

        Raises AgentUnavailableError if DISK does not keep the new generation.
        """
        task = asyncio.get_running_loop().create_task(self._renew(namespace, generation_id))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Evicted]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            log.error("a namespace's invalidation: %s", error)

    async def _renew(self, namespace: Namespace, generation_id: bytes) -> Evicted:
        async with self._lock:
            if generation_id <= namespace.generation_id:
                return Evicted()
            namespace.is_renewing = True
            if self._cluster is not None:
                self._cluster.suspend(namespace)
            try:
                return await self._change(namespace, generation_id)
            finally:
                namespace.is_renewing = False
                if self._cluster is not None:
                    self._cluster.renew(namespace)

    async def _change(self, namespace: Namespace, generation_id: bytes) -> Evicted:
        # At once: DISK may still be looking for what it has.
        gone = await evict(namespace, None, frozenset({Tier.HOST}), cause=Cause.INVALIDATED)
        with suppress(AgentUnavailableError):  # records of an old generation count for nothing
            gone.add(await self._evict_here(namespace))
        namespace.generation_id = generation_id
        self._revoke_reservations(namespace)
        failure = await self._keep(namespace)
        gone.add(await self._evict_here(namespace))  # what was stored meanwhile
        if failure is not None:
            raise AgentUnavailableError(
                f"the new generation id cannot be kept on DISK: {failure.strerror or str(failure)}"
            ) from failure
        return gone

    async def _keep(self, namespace: Namespace) -> OSError | None:
        try:
            if self._disk is not None:
                await self._disk.renew(namespace)
        except OSError as error:
            return error
        return None

    async def close(self) -> None:
        """Waits for what has begun, for a while."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
