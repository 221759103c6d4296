"""Promotion of what waiting requests will need."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from kvtier.client.namespace import Namespace, Place
from kvtier.errors import KvtierError

_Wish = tuple[Namespace, int, Sequence[bytes]]
#: Requests beyond these are not prefetched: they wait for long anyway.
_MOST_WAITING = 256


class Prefetcher:
    """Asks the agent on a thread of its own, so that the scheduler does not wait for the answer.

    The thread begins with the first wish. What fails is forgotten: the load will ask again.
    """

    def __init__(self) -> None:
        self._wishes: queue.Queue[_Wish | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    def ask(self, namespace: Namespace, group: int, hashes: Sequence[bytes]) -> None:
        """Wishes that a prefix be in HOST soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvtier-prefetch", daemon=True)
            self._thread.start()
        if not self._wishes.full():
            self._wishes.put((namespace, group, hashes))

    def close(self) -> None:
        if self._thread is not None:
            self._wishes.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (wish := self._wishes.get()) is not None:
            namespace, group, hashes = wish
            try:
                namespace.prefetch(hashes, place=Place(group))
            except KvtierError:
                continue
