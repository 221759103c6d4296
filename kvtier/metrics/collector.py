"""Takes the numbers of an agent, in slices."""

from __future__ import annotations

import asyncio
from itertools import islice

from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import Tier
from kvtier.metrics.agent_samples import add_agent, add_leases
from kvtier.metrics.namespace_labels import NamespaceLabels
from kvtier.metrics.namespace_samples import add_namespace
from kvtier.metrics.samples import Samples
from kvtier.metrics.sources import Sources
from kvtier.metrics.tier_samples import add_tiers

#: Of namespaces; it takes half a millisecond.
_SLICE = 16


class Collector:
    """Reads on the event loop what the event loop owns; nothing is counted for it meanwhile.

    To be made before there are namespaces, and to be asked by one at a time. `most_names` have a
    label of their own.
    """

    def __init__(self, sources: Sources, most_names: int) -> None:
        self._sources = sources
        self._labels = NamespaceLabels(most_names)
        self._samples = Samples()
        #: Not read yet by the collection that is under way.
        self._waiting: dict[Namespace, None] = {}
        sources.namespaces.on_added.append(self._labels.add)
        sources.namespaces.on_dropped.append(self._dropped)

    async def collect(self) -> Samples:
        """Other work has its turns in between: what is counted then may be in it or not."""
        sources = self._sources
        samples = self._samples = Samples()
        add_agent(samples, sources)
        add_leases(samples, sources)
        add_tiers(samples, sources)
        self._labels.add_left(samples)
        self._waiting = dict.fromkeys(sources.namespaces)
        while self._waiting:
            await asyncio.sleep(0)
            for namespace in list(islice(self._waiting, _SLICE)):
                self._take(namespace)
        return samples

    def _take(self, namespace: Namespace) -> None:
        del self._waiting[namespace]
        self._add(self._samples, namespace)

    def _add(self, samples: Samples, namespace: Namespace) -> None:
        sources, label = self._sources, self._labels.of(namespace)
        add_namespace(samples, namespace, label, sources.disk, sources.cluster)

    def _dropped(self, namespace: Namespace) -> None:
        if namespace in self._waiting:
            self._take(namespace)
        counted = Samples()
        self._add(counted, namespace)
        self._labels.drop(namespace, counted)
        for slower in (self._sources.disk, self._sources.cluster):
            for host in namespace.classes_of(Tier.HOST):
                if slower is not None:
                    slower.writer.writes.pop(host, None)
