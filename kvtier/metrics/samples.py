"""The values of metrics at one moment."""

from __future__ import annotations

from kvtier.core.latency import Latency
from kvtier.metrics.catalogue import METRICS, Kind

Labels = tuple[str, ...]


class Samples:
    """By name and labels; what has the same labels is added up."""

    def __init__(self) -> None:
        kinds = {name: metric.kind for name, metric in METRICS.items()}
        self.values: dict[str, dict[Labels, float]] = {
            name: {} for name, kind in kinds.items() if kind is not Kind.HISTOGRAM
        }
        self.latencies: dict[str, dict[Labels, Latency]] = {
            name: {} for name, kind in kinds.items() if kind is Kind.HISTOGRAM
        }

    def add(self, name: str, value: float, *labels: str) -> None:
        values = self.values[name]
        values[labels] = values.get(labels, 0) + value

    def add_latency(self, name: str, latency: Latency, *labels: str) -> None:
        latencies = self.latencies[name]
        if labels not in latencies:
            latencies[labels] = Latency()
        latencies[labels].add(latency)

    def add_counts(self, other: Samples) -> None:
        """What can only grow: another's counters and histograms."""
        for name, values in other.values.items():
            if METRICS[name].kind is Kind.COUNTER:
                for labels, value in values.items():
                    self.add(name, value, *labels)
        for name, latencies in other.latencies.items():
            for labels, latency in latencies.items():
                self.add_latency(name, latency, *labels)
