"""The connector in a worker's process: loads and stores in the background of the steps."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

from kvtier.client.client import Client
from kvtier.client.namespace import Namespace
from kvtier.core.namespace import NamespaceSpec
from kvtier.integrations.vllm.background import Background
from kvtier.integrations.vllm.loader import Loaded, Loader
from kvtier.integrations.vllm.metrics import KvtierStats
from kvtier.integrations.vllm.paged import PagedGroup
from kvtier.integrations.vllm.plan import Load, Plan
from kvtier.integrations.vllm.storer import Stored, StoreJob, Storer

log = logging.getLogger("vllm.kvtier")

#: In a step that computes nothing the engine would ask again at once, and keep the GIL busy.
_IDLE_WAIT_SECONDS = 0.005


class WorkerSide:
    """Called by vLLM's worker, step by step: `begin`, forward, `computed`, `results`.

    Two threads do the rest, one loads and one stores; their results wait here, under one lock.
    A worker whose bytes another one stores too has `stores` False.
    """

    def __init__(
        self, groups: Sequence[PagedGroup], shard: int, stores: bool, client: Client
    ) -> None:
        self._client = client
        self._stores = stores
        self._loader = Loader(groups, shard, client)
        self._storer = Storer(groups, shard, client)
        self._is_single = len(groups) == 1
        self._fields: dict[str, Any] = {}
        self._namespace: Namespace | None = None
        self._changed = threading.Condition()
        self._loaded: list[Loaded] = []
        self._loading = 0
        self._jobs: list[StoreJob] = []
        self._unfinished: Counter[str] = Counter()
        self._waiting: set[str] = set()
        self._finished: set[str] = set()
        self._broken: set[str] = set()
        self._invalid: set[int] = set()
        self._failing = False
        self._stats = KvtierStats()
        self._to_load = Background("kvtier-load", self._load)
        self._to_store = Background("kvtier-store", self._store)

    def begin(self, plan: Plan) -> None:
        """Before a step overwrites anything: stores that read it end. Loads begin."""
        if plan.namespace is None:
            return
        namespace = self._use(plan.namespace)
        if plan.overwritten:
            with self._changed:
                jobs = [job for job in self._jobs if job.reads(plan.overwritten)]
            for job in jobs:
                job.cancel()
        for load in plan.loads:
            self._loading += 1
            self._to_load.put((namespace, load))

    def computed(self, plan: Plan) -> None:
        """The blocks that the step has filled are in the paged cache."""
        if plan.namespace is None or not self._stores:
            return
        namespace = self._use(plan.namespace)
        for store in plan.stores:
            job = StoreJob(namespace, store)
            with self._changed:
                self._jobs.append(job)
                self._unfinished[store.request_id] += 1
            self._to_store.put(job)

    def results(self, plan: Plan, finished: Collection[str] = ()) -> KVConnectorTransferResults:
        """What has ended since the last step; `finished` are requests of which no more comes."""
        with self._changed:
            self._waiting |= plan.finished
            self._finished |= {*plan.finished, *finished}
            if plan.idle and (self._loading or self._waiting):
                self._changed.wait_for(self._has_news, _IDLE_WAIT_SECONDS)
            loaded, self._loaded = self._loaded, []
            sent = {each for each in self._waiting if not self._unfinished[each]}
            self._waiting -= sent
            for each in [each for each in self._finished if not self._unfinished[each]]:
                self._finished.discard(each)
                self._broken.discard(each)
                del self._unfinished[each]
        self._loading -= len(loaded)
        results = KVConnectorTransferResults(finished_sending=sent)
        for outcome in loaded:
            results.finished_recving.add(outcome.request_id)
            if outcome.missing and self._is_single:
                self._invalid |= set(outcome.missing)
            elif outcome.missing:
                results.failed_recving.add(outcome.request_id)
        return results

    def take_invalid(self) -> set[int]:
        """Paged blocks that a load should have filled and did not; of models with one group."""
        invalid, self._invalid = self._invalid, set()
        return invalid

    def take_stats(self) -> KvtierStats | None:
        with self._changed:
            return self._stats.take()

    def close(self) -> None:
        """Ends the threads; what they have not begun is dropped."""
        with self._changed:
            jobs = list(self._jobs)
        for job in jobs:
            job.cancelled = True
        self._to_load.close()
        self._to_store.close()
        self._client.close()

    def _use(self, fields: dict[str, Any]) -> Namespace:
        """The namespace of these fields; they are the same, step after step."""
        if self._namespace is None or self._fields != fields:
            self._fields = fields
            self._namespace = self._client.namespace(NamespaceSpec(**fields))
        return self._namespace

    def _has_news(self) -> bool:
        return bool(self._loaded) or any(not self._unfinished[each] for each in self._waiting)

    def _load(self, task: tuple[Namespace, Load]) -> None:
        namespace, load = task
        outcome = self._loader.load(namespace, load)
        with self._changed:
            self._loaded.append(outcome)
            self._stats.add("loaded_bytes", outcome.size_bytes)
            self._stats.add("load_seconds", outcome.seconds)
            if outcome.missing:
                self._stats.add("failures", 1, "load")
            self._changed.notify_all()
        self._note(outcome.error)

    def _store(self, job: StoreJob) -> None:
        request_id = job.store.request_id
        if job.store.restarts:
            self._broken.discard(request_id)
        outcome = Stored(request_id, 0, 0.0, False)
        if request_id not in self._broken and not job.cancelled:
            outcome = self._storer.store(job)
            self._note(outcome.error)
        with self._changed:
            self._jobs.remove(job)
            self._unfinished[request_id] -= 1
            if not outcome.is_whole:  # nothing is stored of which the beginning is missing
                self._broken.add(request_id)
            self._stats.add("stored_bytes", outcome.size_bytes)
            self._stats.add("store_seconds", outcome.seconds)
            if outcome.error:
                self._stats.add("failures", 1, "store")
            self._changed.notify_all()

    def _note(self, error: str) -> None:
        """Logs the first failure in a row."""
        if error:
            level = logging.DEBUG if self._failing else logging.WARNING
            log.log(level, "kvtier: blocks are not loaded or stored: %s", error)
        self._failing = bool(error)
