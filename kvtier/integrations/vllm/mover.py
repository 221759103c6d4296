"""What loading and storing have in common."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from kvtier.client.client import Client
from kvtier.client.namespace import Place
from kvtier.errors import KvtierError
from kvtier.integrations.vllm.paged import PagedGroup
from kvtier.integrations.vllm.plan import Blocks
from kvtier.integrations.vllm.reconnecting import call

T = TypeVar("T")

log = logging.getLogger("vllm.kvtier")

#: What may go wrong without being anybody's mistake.
_FAILURES = (KvtierError, OSError, MemoryError, RuntimeError, ValueError)


class Mover:
    """Moves blocks between the paged cache of one worker and the agent, in the calling thread."""

    def __init__(
        self,
        groups: Sequence[PagedGroup],
        shard: int,
        client: Client,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._groups = groups
        self._shard = shard
        self._client = client
        self._clock = clock

    def _place(self, blocks: Blocks) -> Place:
        return Place(blocks.group, self._shard, blocks.parent, blocks.position)

    def _attempt(self, action: Callable[[], T], otherwise: T) -> tuple[T, str]:
        """What `action` returns, or `otherwise` and what went wrong. Never raises."""
        try:
            return call(self._client, self._client.timeout_seconds, action), ""
        except _FAILURES as failure:
            return otherwise, str(failure) or repr(failure)
        except Exception as failure:
            log.exception("kvtier: a load or store failed")
            return otherwise, repr(failure)
