"""What an agent says of itself, once an interval, from a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from kvtier.client.admin import AdminClient
from kvtier.errors import ConfigError, InvalidRequestError, KvtierError
from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Session, Stats

_RETRY_SECONDS = 0.5
_JOIN_SECONDS = 5.0
#: Lists of many sessions and namespaces are asked for less often: they take the agent this share of
#: its time at most.
_LISTING_SHARE = 0.05
#: What no waiting mends.
_FATAL = (InvalidRequestError, ConfigError)


@dataclass(frozen=True)
class Sample:
    """One interval. `chosen` is what the agent counts for the namespace that was asked for."""

    stats: Stats
    namespaces: list[NamespaceInfo] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    chosen: Stats | None = None
    chosen_name: str = ""


class Feed:
    """Follows an agent, and connects again when it is gone; a context manager.

    `on_news` is called by the feed's thread when there is a sample, or an error.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[AdminClient]],
        interval_seconds: float,
        on_news: Callable[[], None],
    ) -> None:
        self.namespace = ""
        """Whose counters are asked for, beside those of all."""
        self._connect = connect
        self._interval_seconds = interval_seconds
        self._on_news = on_news
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._client: AdminClient | None = None
        self._samples: list[Sample] = []
        self._lists: tuple[list[NamespaceInfo], list[Session]] = [], []
        self._list_again_at = 0.0
        self._heard_at = time.monotonic()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def take(self) -> list[Sample]:
        """What has come since the last time. Raises what no waiting mends."""
        with self._lock:
            taken, self._samples = self._samples, []
            error = self._error
        if error is not None and (isinstance(error, _FATAL) or not isinstance(error, KvtierError)):
            raise error
        return taken

    def complaint(self) -> str:
        """Why nothing comes; empty while something does."""
        with self._lock:
            silent_seconds = time.monotonic() - self._heard_at
            error = self._error
        if error is not None:
            return f"{error}; trying again"
        patience = self._interval_seconds + max(2.0, self._interval_seconds)
        if silent_seconds > patience:
            return (
                f"the agent has not answered for {silent_seconds:.0f} s: it hangs or is stopped "
                "(its log, `ps`, `dmesg`); trying again"
            )
        return ""

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._connect() as client:
                    self._client = client
                    self._follow(client)
            except Exception as error:  # for the thread that draws
                if self._stopped.is_set():
                    return
                with self._lock:
                    self._error = error
                self._on_news()
            self._client = None
            self._stopped.wait(_RETRY_SECONDS)

    def _follow(self, client: AdminClient) -> None:
        for stats in client.watch_stats(interval_seconds=self._interval_seconds):
            sample = self._sample(client, stats)
            with self._lock:
                self._samples.append(sample)
                self._heard_at, self._error = time.monotonic(), None
            if self._stopped.is_set():
                return
            self._on_news()

    def _sample(self, client: AdminClient, stats: Stats) -> Sample:
        name, chosen, began = self.namespace, None, time.monotonic()
        if began >= self._list_again_at:
            self._lists = client.list_namespaces(), client.list_sessions()
            ended = time.monotonic()
            self._list_again_at = ended + (ended - began) / _LISTING_SHARE
        if name:
            try:
                chosen = client.get_stats(name)
            except KvtierError:  # it made way for another
                name = ""
        return Sample(stats, *self._lists, chosen, name)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        client = self._client
        if client is not None:
            client.close()  # ends a call that waits
        self._thread.join(_JOIN_SECONDS)
