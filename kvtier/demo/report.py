"""What came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from kvtier.demo.exchange import Outcome
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import Stats, TierStats


@dataclass(frozen=True)
class Turn:
    """What a worker did, and the blocks that each tier served to it.

    `source` is the tier that should have served some; "" if there was nothing yet to serve. `node`
    is where it ran; "" if there is only one.
    """

    worker: str
    outcome: Outcome
    hits: Mapping[str, int]
    source: str
    node: str = ""

    @property
    def is_served(self) -> bool:
        hits = sum(count for name, count in self.hits.items() if name.split()[0] == self.source)
        served = hits > 0 and self.outcome.restored_tokens > 0
        return served or not self.source


@dataclass(frozen=True)
class Account:
    """What each worker did, and the agents' own counts, line by line."""

    turns: Sequence[Turn]
    lines: Sequence[str]


def hits_by_tier(before: Stats, after: Stats) -> dict[str, int]:
    """Blocks served between two samples of one run of the agent, by the tier's name."""
    earlier = {tier.tier: tier.hit_count for tier in before.tiers}
    return {_name(tier): tier.hit_count - earlier.get(tier.tier, 0) for tier in after.tiers}


def turns_table(turns: Sequence[Turn]) -> Table:
    """A column for each worker."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("")
    for turn in turns:
        drawn.add_column(turn.worker, justify="right")
    columns = [_column(turn) for turn in turns]
    for row in columns[0]:
        drawn.add_row(row, *(column[row] for column in columns))
    return drawn


def _column(turn: Turn) -> dict[str, str]:
    outcome = turn.outcome
    speed = outcome.loaded_bytes / outcome.load_seconds / 1e9 if outcome.loaded_bytes else 0.0
    return {
        **({"runs on": turn.node} if turn.node else {}),
        "prompt, tokens": f"{outcome.prompt_tokens:,}",
        "of it from the cache": f"{outcome.restored_tokens:,}",
        "first token without kvtier": f"{outcome.cold_seconds:.2f} s",
        "first token with kvtier": f"{outcome.cached_seconds:.2f} s",
        "speed-up": _speed_up(outcome),
        "stored": human_bytes(outcome.stored_bytes),
        "loaded": human_bytes(outcome.loaded_bytes),
        "loading": f"{speed:.2f} GB/s" if speed else "-",
        **{f"hits in {tier}, blocks": f"{count:,}" for tier, count in turn.hits.items()},
        "same tokens": "yes" if outcome.is_identical else "NO",
    }


def _speed_up(outcome: Outcome) -> str:
    """`-` where nothing was cached: what is measured then is noise."""
    if not outcome.restored_tokens:
        return "-"
    return f"{outcome.cold_seconds / outcome.cached_seconds:.1f} x"


def tier_line(tier: TierStats) -> str:
    """One tier, as `kvtier stats` counts it.

    Of GPU how much it has: a copy's block is HOST's.
    Of CLUSTER what the agent did: how full it is, all nodes together do.
    """
    if tier.tier == block_pb2.TIER_CLUSTER:
        done = f"{tier.stored_count:,} blocks stored, {tier.hit_count:,} loaded"
        return f"{_name(tier)}: {done}; {TierStats.State.Name(tier.state)}"
    if tier.tier == block_pb2.TIER_GPU:
        return (
            f"{_name(tier)}: {tier.block_count:,} blocks, {human_bytes(tier.used_bytes)} of "
            f"{human_bytes(tier.capacity_bytes)}; {tier.stored_count:,} copied from HOST, "
            f"{tier.hit_count:,} loaded"
        )
    return (
        f"{_name(tier)}: {tier.block_count:,} blocks, {human_bytes(tier.used_bytes)} of "
        f"{human_bytes(tier.capacity_bytes)}; {tier.stored_count:,} stored, {tier.hit_count:,} "
        f"loaded, {tier.miss_count:,} lost before load, {tier.evicted_count:,} evicted, "
        f"{tier.refused_count:,} refused"
    )


def state_of(tier: TierStats) -> str:
    """`ACTIVE`, or what else it is and why."""
    state = TierStats.State.Name(tier.state)
    return f"{state} ({tier.reason})" if tier.reason else state


def verdict(turns: Sequence[Turn]) -> tuple[bool, str]:
    """Whether kvtier did its job, and how to say so."""
    wrong = [turn.worker for turn in turns if not turn.outcome.is_identical]
    if wrong:
        workers = ", ".join(wrong)
        return False, f"Generated tokens are NOT those of a run without kvtier: {workers}."
    empty = [f"from {turn.source} for {turn.worker}" for turn in turns if not turn.is_served]
    if empty:
        return False, f"No prefix came {', '.join(empty)}."
    count = sum(len(turn.outcome.answer) for turn in turns)
    return True, f"All {count} generated tokens are those of a run without kvtier."


def human_bytes(size_bytes: int) -> str:
    """`80.5 MiB`, `4.00 GiB`; `-` for nothing."""
    if not size_bytes:
        return "-"
    return (
        f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"
    )


def _name(tier: TierStats) -> str:
    name = block_pb2.Tier.Name(tier.tier).removeprefix("TIER_")
    return f"{name} {tier.device}" if tier.device else name
