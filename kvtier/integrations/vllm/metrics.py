"""The connector's counters, in vLLM's log and at its /metrics."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Gauge
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

#: Names, the label that parts of them have or "", and help texts.
COUNTERS = {
    "hit_blocks": ("tier", "Blocks that were found at the agent and are loaded, by tier"),
    "hit_tokens": ("tier", "Tokens that need not be computed because of these blocks"),
    "lookups": ("", "Questions to the agent about a request's prefix"),
    "lookup_seconds": ("", "Time that the scheduler waited for the answers"),
    "loaded_bytes": ("", "Bytes copied into the paged KV cache"),
    "load_seconds": ("", "Time from a load's beginning to its end"),
    "stored_bytes": ("", "Bytes copied out of the paged KV cache"),
    "store_seconds": ("", "Time from a store's beginning to its end"),
    "failures": ("verb", "Lookups, loads and stores that did not succeed"),
    "prefill_tokens": ("", "Tokens of prompts computed in steps that were measured"),
    "prefill_seconds": ("", "Time that these steps took"),
}
_PREFILL_SPEED = "prefill_tokens_per_second"


class KvtierStats(KVConnectorStats):
    """Counts since the last report: `name` or `name/part`, as numbers that can be added."""

    def add(self, name: str, value: float, part: str = "") -> None:
        key = f"{name}/{part}" if part else name
        self.data[key] = self.data.get(key, 0) + value

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def take(self) -> KvtierStats | None:
        """The counts so far, None if there are none; begins anew."""
        taken = KvtierStats(self.data) if self.data else None
        self.reset()
        return taken

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for key, value in other.data.items():
            self.data[key] = self.data.get(key, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        shown = {key: round(value, 3) for key, value in sorted(self.data.items())}
        seconds = self.data.get("prefill_seconds", 0)
        if seconds:
            shown[_PREFILL_SPEED] = round(self.data.get("prefill_tokens", 0) / seconds)
        return shown

    def is_empty(self) -> bool:
        return not self.data


class KvtierPromMetrics(KVConnectorPromMetrics):
    """`vllm:kvtier_<name>_total`, and the speed of the last prefills as a gauge."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        make = metric_types[Counter]
        self._counters: dict[str, Any] = {
            name: make(
                name=f"vllm:kvtier_{name}",
                documentation=text,
                labelnames=[*labelnames, label] if label else labelnames,
            )
            for name, (label, text) in COUNTERS.items()
        }
        self._speed: Any = metric_types[Gauge](
            name=f"vllm:kvtier_{_PREFILL_SPEED}",
            documentation="Speed at which prompts were computed of late",
            labelnames=labelnames,
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for key, value in transfer_stats_data.items():
            name, _, part = key.partition("/")
            if name in self._counters:
                values = [*labels, part] if COUNTERS[name][0] else labels
                self._counters[name].labels(*values).inc(value)
        seconds = transfer_stats_data.get("prefill_seconds", 0)
        if seconds:
            self._speed.labels(*labels).set(transfer_stats_data["prefill_tokens"] / seconds)
