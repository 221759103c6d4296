"""What a replay says about a policy and a capacity."""

from __future__ import annotations

from dataclasses import dataclass

from kvtier.sim.costs import Costs
from kvtier.sim.replay import Tally, TierTally
from kvtier.sim.trace import Trace

_DAY_SECONDS = 86_400
TIER_NAMES = ("host", "disk")


@dataclass
class TierOutcome:
    """One tier's part. Bytes are None where a block's are not known."""

    tier: str
    capacity_blocks: int
    hit_blocks: int
    read_blocks: int
    written_blocks: int
    read_bytes: int | None
    written_bytes: int | None


@dataclass
class Outcome:
    """Rates are of what was requested; partial blocks are requested, and never hit.

    `written_*_per_day` are those of DISK, or of the only tier, were it an SSD; None for a trace of
    no duration. `saved_seconds` are how much sooner first tokens come, all requests together.
    """

    trace: str
    policy: str
    disk_policy: str | None
    capacity_fraction: float
    capacity_blocks: int
    capacity_bytes: int | None
    requests: int
    trace_seconds: float
    unique_blocks: int
    requested_blocks: int
    hit_blocks: int
    block_hit_rate: float
    requested_tokens: int
    hit_tokens: int
    token_hit_rate: float
    tiers: list[TierOutcome]
    written_blocks_per_day: float | None
    written_bytes_per_day: float | None
    prefill_seconds: float | None
    saved_seconds: float | None
    saved_seconds_per_request: float | None
    elapsed_seconds: float


def outcome(
    trace: Trace,
    policies: tuple[str, str | None],
    capacities: list[int],
    fraction: float | None,
    tally: Tally,
    costs: Costs,
    elapsed_seconds: float,
) -> Outcome:
    """Everything that follows from a tally. `fraction` is what was asked for, if a share was."""
    blocks, size = sum(capacities), costs.block_bytes
    tiers = [_tier(*each, size) for each in zip(TIER_NAMES, capacities, tally.tiers, strict=False)]
    days = trace.duration_seconds / _DAY_SECONDS
    per_day = tiers[-1].written_blocks / days if days else None
    saved, speed = costs.saved_seconds(tally.tiers), costs.prefill_tokens_per_second
    return Outcome(
        trace=trace.name,
        policy=policies[0],
        disk_policy=policies[1],
        capacity_fraction=fraction or blocks / trace.unique_blocks,
        capacity_blocks=blocks,
        capacity_bytes=_bytes(blocks, size),
        requests=len(trace),
        trace_seconds=trace.duration_seconds,
        unique_blocks=trace.unique_blocks,
        requested_blocks=tally.requested_blocks,
        hit_blocks=tally.hit_blocks,
        block_hit_rate=tally.hit_blocks / tally.requested_blocks,
        requested_tokens=tally.requested_tokens,
        hit_tokens=tally.hit_tokens,
        token_hit_rate=tally.hit_tokens / tally.requested_tokens,
        tiers=tiers,
        written_blocks_per_day=per_day,
        written_bytes_per_day=None if per_day is None or size is None else per_day * size,
        prefill_seconds=None if speed is None else tally.requested_tokens / speed,
        saved_seconds=saved,
        saved_seconds_per_request=None if saved is None else saved / len(trace),
        elapsed_seconds=elapsed_seconds,
    )


def _tier(name: str, capacity: int, tally: TierTally, block_bytes: float | None) -> TierOutcome:
    return TierOutcome(
        tier=name,
        capacity_blocks=capacity,
        hit_blocks=tally.hit_blocks,
        read_blocks=tally.read_blocks,
        written_blocks=tally.written_blocks,
        read_bytes=_bytes(tally.read_blocks, block_bytes),
        written_bytes=_bytes(tally.written_blocks, block_bytes),
    )


def _bytes(blocks: int, block_bytes: float | None) -> int | None:
    return None if block_bytes is None else round(blocks * block_bytes)
