"""What makes each alert fire: series as promtool writes them, and when to look.

Each scenario makes the alert of its name fire, and no other.
"""

from __future__ import annotations

from dataclasses import dataclass

_NODE = 'job="kvtier", instance="n"'


@dataclass(frozen=True)
class Scenario:
    """`series` have a value each `step_minutes`, by metric and labels; `minutes` is when the alert
    fires, and `quiet_minutes` when it does not yet."""

    alert: str
    series: dict[str, str]
    minutes: int
    quiet_minutes: int
    step_minutes: int = 1


def _of(metric: str, labels: str = "") -> str:
    return f"{metric}{{{_NODE}{', ' if labels else ''}{labels}}}"


_TOKENS = "kvtier_lookup_tokens_total"
_HIT = 'tier="host", namespace="a/b", status="hit"'
_MISS = 'tier="host", namespace="a/b", status="miss"'
_DAY = 24 * 60

SCENARIOS = [
    Scenario("KvtierAgentDown", {_of("up"): "1x5 0x10"}, 9, 4),
    Scenario(
        "KvtierAgentRestarts",
        {_of("process_start_time_seconds"): "100x9 200x9 300x9 400x9"},
        31,
        15,
    ),
    Scenario("KvtierNotReady", {_of("kvtier_ready"): "1x4 0x30"}, 22, 18),
    Scenario(
        "KvtierInternalErrors",
        {_of("kvtier_calls_total", 'method="LoadBlocks", status="INTERNAL"'): "0x9 1x30"},
        14,
        8,
    ),
    Scenario(
        # Series begin at the Unix time 0.
        "KvtierCertificateExpires",
        {_of("kvtier_certificate_expiry_timestamp_seconds"): f"{7 * 86400 + 300}x20"},
        10,
        2,
    ),
    Scenario("KvtierListenFilesBroken", {_of("kvtier_listen_errors"): "0x4 1x20"}, 14, 8),
    Scenario("KvtierCallsRejected", {_of("kvtier_rejected_calls_total"): "0x9 0+60x30"}, 25, 15),
    Scenario(
        "KvtierLookupsSlow",
        {
            _of("kvtier_lookup_seconds_bucket", 'namespace="a/b", le="0.1"'): "0+30x30",
            _of("kvtier_lookup_seconds_bucket", 'namespace="a/b", le="0.25"'): "0+60x30",
            _of("kvtier_lookup_seconds_bucket", 'namespace="a/b", le="+Inf"'): "0+60x30",
        },
        20,
        8,
    ),
    Scenario(
        "KvtierBeyondCapacity",
        {
            _of("kvtier_allocated_bytes", 'tier="host"'): "90x9 101x20",
            _of("kvtier_capacity_bytes", 'tier="host"'): "100x30",
            _of("kvtier_allocated_bytes", 'tier="cluster"'): "90x30",
            _of("kvtier_capacity_bytes", 'tier="cluster"'): "0x30",
        },
        16,
        13,
    ),
    Scenario(
        "KvtierMemoryPressure",
        {_of("kvtier_memory_pressure_seconds_total", 'kind="some"'): "0x9 0+12x30"},
        25,
        8,
    ),
    Scenario(
        "KvtierMemoryShort",
        {
            _of("kvtier_memory_available_bytes"): "600x9 400x30",
            _of("kvtier_memory_reserve_bytes"): "500x40",
            _of("kvtier_allocated_bytes", 'tier="host"'): "90x40",
            _of("kvtier_capacity_bytes", 'tier="host"'): "100x40",
        },
        28,
        20,
    ),
    Scenario(
        "KvtierQuarantine",
        {
            _of("kvtier_lease_bytes", 'kind="quarantine"'): "0x9 5x30",
            _of("kvtier_capacity_bytes", 'tier="host"'): "100x40",
        },
        21,
        15,
    ),
    Scenario(
        "KvtierLeasesStuck",
        {
            _of("kvtier_oldest_lease_seconds", 'kind="load"'): "0+60x40",
            _of("kvtier_oldest_lease_seconds", 'kind="quarantine"'): "0+60x40",
        },
        20,
        12,
    ),
    Scenario(
        "KvtierCorruption",
        {_of("kvtier_corrupt_blocks_total", 'tier="disk", reason="damaged"'): "0x9 1x30"},
        14,
        8,
    ),
    Scenario(
        "KvtierForeignValues",
        {_of("kvtier_corrupt_blocks_total", 'tier="cluster", reason="unknown_key"'): "0x9 1x30"},
        14,
        8,
    ),
    Scenario(
        "KvtierWorkerBytesWrong",
        {_of("kvtier_mismatched_blocks_total", 'namespace="a/b"'): "0x9 1x30"},
        14,
        8,
    ),
    Scenario(
        "KvtierHitRateDrop",
        {
            _of(_TOKENS, _HIT): f"0+40000x{_DAY // 5} 11520000+10000x24",
            _of(_TOKENS, _MISS): f"0+10000x{_DAY // 5} 2880000+40000x24",
        },
        _DAY + 80,
        _DAY - 10,
        step_minutes=5,
    ),
    Scenario("KvtierLayoutsDiffer", {_of("kvtier_open_layouts", 'namespace="a/b"'): "2x30"}, 16, 9),
    Scenario(
        "KvtierLostBeforeLoad",
        {
            _of("kvtier_missed_blocks_total", 'namespace="a/b"'): "0x9 0+10x40",
            _of("kvtier_hit_blocks_total", 'tier="host", namespace="a/b"'): "0+100x60",
        },
        32,
        15,
    ),
    Scenario(
        "KvtierRefusals",
        {
            _of(
                "kvtier_refused_blocks_total", 'tier="host", namespace="a/b", reason="quota"'
            ): "0x9 0+120x40"
        },
        40,
        15,
    ),
    Scenario(
        "KvtierPrefetchWasted",
        {
            _of("kvtier_prefetched_blocks_total", 'namespace="a/b"'): "0+240x90",
            _of("kvtier_prefetch_wasted_blocks_total", 'namespace="a/b"'): "0+180x90",
        },
        50,
        25,
    ),
    Scenario(
        "KvtierTierUnavailable",
        {_of("kvtier_tier_state", 'tier="disk", state="unavailable"'): "0x9 1x20"},
        12,
        9,
    ),
    Scenario(
        "KvtierTierDegraded",
        {_of("kvtier_tier_state", 'tier="disk", state="degraded"'): "0x9 1x20"},
        16,
        12,
    ),
    Scenario(
        "KvtierTierRecovering",
        {_of("kvtier_tier_state", 'tier="disk", state="recovering"'): "1x60"},
        31,
        20,
    ),
    Scenario(
        "KvtierDeviceErrors",
        {_of("kvtier_device_errors_total", 'tier="disk"'): "0x9 0+1x40"},
        25,
        10,
    ),
    Scenario(
        "KvtierWritesLate",
        {_of("kvtier_unwritten_blocks_total", 'tier="disk"'): "0x9 0+120x60"},
        45,
        15,
    ),
]
