"""Promotion of what waiting requests will need."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from kvtier.client.namespace import Namespace, Place
from kvtier.errors import KvtierError
from kvtier.integrations.vllm.background import Background

_Wish = tuple[Namespace, int, Sequence[bytes]]
#: Requests beyond these are not prefetched: they wait for long anyway.
_MOST_WAITING = 256


class Prefetcher:
    """Asks the agent on a thread of its own, so that the scheduler does not wait for the answer.

    What fails is forgotten: the load will ask again.
    """

    def __init__(self) -> None:
        self._wishes: Background[_Wish] = Background("kvtier-prefetch", _prefetch, _MOST_WAITING)

    def ask(self, namespace: Namespace, group: int, hashes: Sequence[bytes]) -> None:
        """Wishes that a prefix be in HOST soon."""
        self._wishes.put((namespace, group, hashes))

    def close(self) -> None:
        self._wishes.close()


def _prefetch(wish: _Wish) -> None:
    namespace, group, hashes = wish
    with suppress(KvtierError):
        namespace.prefetch(hashes, place=Place(group))
