"""Samples as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from kvtier.core.latency import BOUNDS_SECONDS, Latency
from kvtier.metrics.catalogue import METRICS, Kind, Metric
from kvtier.metrics.samples import Samples

_LE = [*map(str, BOUNDS_SECONDS), "+Inf"]


def render(samples: Samples, accept: str) -> tuple[bytes, str]:
    """The text in the format that a scraper accepts, and its content type; for a thread."""
    registry = CollectorRegistry()
    registry.register(_Families(samples))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Families(Collector):
    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterable[Family]:
        return map(self._family, METRICS.values())

    def _family(self, metric: Metric) -> Family:
        if metric.kind is Kind.HISTOGRAM:
            return _histogram(metric, self._samples)
        kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
        family = kind(metric.name, metric.text, labels=metric.labels)
        for labels, value in self._samples.values[metric.name].items():
            family.add_metric(labels, value)
        return family

    def describe(self) -> Iterator[Family]:
        return iter(())


def _histogram(metric: Metric, samples: Samples) -> Family:
    family = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
    for labels, latency in samples.latencies[metric.name].items():
        family.add_metric(labels, buckets=_buckets(latency), sum_value=latency.seconds)
    return family


def _buckets(latency: Latency) -> list[tuple[str, float]]:
    return list(zip(_LE, map(float, accumulate(latency.counts)), strict=True))
