"""What is not as it should be with an agent, from what it says of itself; the worst first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from kvtier.cli.process_state import process_state
from kvtier.cli.text import human_bytes, human_seconds, plural, printable
from kvtier.cli.tiers import name_of
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Session, Stats, TierStats

if TYPE_CHECKING:
    from collections.abc import Callable

_YOUNG_SECONDS: Final = 600.0
#: Of a certificate; who renews them by hand wants days, and a machine does it before.
_SOON_SECONDS: Final = 7 * 24 * 3600
_SHORT_STAY_SECONDS: Final = 60.0
_SLOW_SECONDS_PER_MIB: Final = 0.05
#: Of what was meant for a tier; less is the noise of a busy agent.
_MUCH: Final = 0.05
#: A holding grows by whole extents, so that its limit is seldom met to the byte.
_AT_LIMIT: Final = 0.9
_MOST_CHARACTERS: Final = 64
_TIERS: Final = ("GPU", "HOST", "DISK", "CLUSTER")


class Weight(IntEnum):
    """How bad it is."""

    PROBLEM = 0
    WARNING = 1
    NOTE = 2

    @property
    def style(self) -> str:
        """On a terminal with colours."""
        return ("bold red", "yellow", "dim")[self]


@dataclass(frozen=True)
class Trouble:
    """What is wrong, and what to do about it."""

    weight: Weight
    text: str
    advice: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))


def all_troubles(
    stats: Stats, namespaces: Sequence[NamespaceInfo], sessions: Sequence[Session]
) -> list[Trouble]:
    """The worst first."""
    found = [*of_stats(stats), *of_sessions(sessions), *of_namespaces(namespaces)]
    return sorted(found, key=lambda each: each.weight)


def of_stats(stats: Stats) -> list[Trouble]:
    """Of the agent as a whole, and of its tiers; the worst first."""
    found = [*_of_agent(stats)]
    for tier in stats.tiers:
        found += [trouble for judge in _OF_TIER for trouble in judge(tier, stats)]
    return sorted(found, key=lambda each: each.weight)


def _of_agent(stats: Stats) -> Iterator[Trouble]:
    if stats.is_draining:
        yield Trouble(
            Weight.PROBLEM,
            "the agent is drained: it takes no new work, and workers compute",
            "`kvtier resume`, unless it is to be stopped",
        )
    for error in stats.listen_errors:
        yield Trouble(
            Weight.PROBLEM,
            f"{error}; what was read before still holds",
            "mend the file: the agent reads it again by itself",
        )
    if stats.HasField("certificate_expire_time"):
        expires_at = stats.certificate_expire_time.ToSeconds()
        yield from _of_certificate(expires_at - stats.sample_time.ToSeconds())
    if stats.rejected_count:
        yield Trouble(
            Weight.WARNING,
            f"{plural(stats.rejected_count, 'call')} rejected since the start: too much was in "
            "flight",
            "fewer workers, smaller batches, or a larger limits.max_calls",
        )
    seconds = stats.uptime.ToTimedelta().total_seconds()
    if stats.tiers and seconds < _YOUNG_SECONDS:
        tiers = {tier.tier for tier in stats.tiers}
        kept = (
            "what DISK had is still there" if block_pb2.TIER_DISK in tiers else "there is no DISK"
        )
        yield Trouble(
            Weight.NOTE,
            f"the agent started {human_seconds(seconds)} ago with an empty HOST; {kept}",
            "hits come back as prompts do; with tiers.disk.paths blocks outlive a restart",
        )


# Of one tier, each for one kind of trouble.


def _state(tier: TierStats, stats: Stats) -> Iterator[Trouble]:
    if not tier.reason:
        return
    weight = {
        TierStats.RECOVERING: Weight.NOTE,
        TierStats.ACTIVE: Weight.WARNING,
    }.get(tier.state, Weight.PROBLEM)
    yield Trouble(weight, f"{name_of(tier)} is {_state_name(tier)}: {tier.reason}", _mend(tier))


def _mend(tier: TierStats) -> str:
    if tier.state == TierStats.RECOVERING:
        return "wait: blocks of an earlier run are found as it goes on"
    if tier.tier == block_pb2.TIER_CLUSTER and tier.state == TierStats.DEGRADED:
        return (
            "let the server take writes (maxmemory, maxmemory-policy allkeys-lru, the user's "
            "permissions, the master rather than a replica); blocks are read meanwhile"
        )
    if tier.tier == block_pb2.TIER_CLUSTER:
        return (
            "start the server or mend the way to it (tiers.cluster.url); nodes go on without it, "
            "and it comes back by itself"
        )
    if tier.tier == block_pb2.TIER_GPU:
        return (
            "free memory on the device, or mend what the reason names, and restart the agent; "
            "workers there load from HOST meanwhile"
        )
    return (
        "make space on the device or mend it, or lower tiers.disk.min_free; HOST goes on, and the "
        "tier comes back by itself"
    )


def _size(tier: TierStats, stats: Stats) -> Iterator[Trouble]:
    excess = tier.allocated_bytes - tier.capacity_bytes
    if tier.tier != block_pb2.TIER_CLUSTER and excess > 0:
        yield Trouble(
            Weight.NOTE,
            f"{name_of(tier)} is shrinking: {human_bytes(excess)} more than its capacity",
            "wait: what is in use goes when it is not",
        )


def _quarantine(tier: TierStats, stats: Stats) -> Iterator[Trouble]:
    if tier.quarantined_bytes:
        yield Trouble(
            Weight.WARNING,
            f"{name_of(tier)}: {human_bytes(tier.quarantined_bytes)} in quarantine: a worker that "
            "reserved them is late, and may still write",
            "`kvtier sessions` says which; it comes back when the worker goes on or ends",
        )


def _damage(tier: TierStats, stats: Stats) -> Iterator[Trouble]:
    if tier.corrupt_count:
        yield Trouble(
            Weight.PROBLEM,
            f"{name_of(tier)}: {plural(tier.corrupt_count, 'block')} damaged, found and dropped; "
            "workers computed them",
            "`kvtier scrub disk` looks for more; see the device's health (dmesg, smartctl)"
            if tier.tier == block_pb2.TIER_DISK
            else "see who else writes to the server, and that all nodes have the same keys_file",
        )
    if tier.error_count and tier.state == TierStats.ACTIVE:
        yield Trouble(
            Weight.WARNING,
            f"{name_of(tier)}: {plural(tier.error_count, 'call')} failed since the start",
            "see the agent's log for which",
        )


def _room(tier: TierStats, stats: Stats) -> Iterator[Trouble]:
    """A tier that is too small for what is asked of it."""
    name, seconds = name_of(tier), stats.uptime.ToTimedelta().total_seconds()
    offered = tier.refused_count + tier.stored_count
    if tier.refused_count > _MUCH * offered:
        yield Trouble(
            Weight.WARNING,
            f"{name} refused {tier.refused_count:,} of {plural(offered, 'block')}: all that could "
            "have made way was in use, or beyond a share or limit",
            f"`kvtier explain` says which for a block; {_larger(tier)}",
        )
    is_copy = tier.tier == block_pb2.TIER_GPU  # what goes is still in HOST
    if tier.crowded_out_count and tier.crowded_out_count >= tier.block_count and not is_copy:
        stay = seconds * tier.block_count / tier.crowded_out_count
        if stay < _SHORT_STAY_SECONDS:
            yield Trouble(
                Weight.WARNING,
                f"{name} is small for this load: a block stays {stay:.3g} s "
                f"({tier.crowded_out_count:,} evicted, room for {tier.block_count:,})",
                _larger(tier),
            )
    if tier.unwritten_count > _MUCH * (tier.unwritten_count + tier.demoted_count):
        yield Trouble(
            Weight.WARNING,
            f"{name}: {plural(tier.unwritten_count, 'block')} left HOST before they were written",
            "a larger HOST, a faster device, or a tiers.*.write_policy that writes less",
        )


def _larger(tier: TierStats) -> str:
    if tier.tier == block_pb2.TIER_GPU:
        return "a larger capacity in tiers.gpu.devices, if the engines can spare it"
    return f"`kvtier tier set {name_of(tier).lower()}.capacity=SIZE`; `kvtier plan` says how large"


def _speed(tier: TierStats, stats: Stats) -> Iterator[Trouble]:
    if tier.read_seconds_per_mib > _SLOW_SECONDS_PER_MIB:
        yield Trouble(
            Weight.WARNING,
            f"{name_of(tier)} is slow: reading 1 MiB takes {tier.read_seconds_per_mib:.2g} s",
            "compare `kvtier doctor`; see who else uses the device or the network",
        )
    if tier.distrusted_seconds:
        yield Trouble(
            Weight.WARNING,
            f"{name_of(tier)} kept loads waiting for longer than expected: they compute instead "
            f"for {tier.distrusted_seconds:.0f} s more",
            "nothing, if it was once; else see why the device or server is slow",
        )


_OF_TIER: Final[tuple[Callable[[TierStats, Stats], Iterator[Trouble]], ...]] = (
    _state,
    _size,
    _quarantine,
    _damage,
    _room,
    _speed,
)


def _of_certificate(seconds_left: int) -> Iterator[Trouble]:
    advice = "put a new one in its place, with its key: the agent reads both by itself"
    if seconds_left <= 0:
        text = "listen.tls_cert has expired: over TCP nobody trusts the agent any more"
        yield Trouble(Weight.PROBLEM, text, advice)
    elif seconds_left < _SOON_SECONDS:
        text = f"listen.tls_cert expires in {human_seconds(seconds_left)}"
        yield Trouble(Weight.WARNING, text, advice)


def of_sessions(sessions: Iterable[Session]) -> Iterator[Trouble]:
    """Of workers that stand still."""
    for session in sessions:
        if session.quarantined_bytes:
            who = session.worker or "a worker"
            if str(session.pid) not in who:
                who += f" (pid {session.pid})"
            state = process_state(session.pid)
            yield Trouble(
                Weight.PROBLEM if state else Weight.WARNING,
                f"{who} has {human_bytes(session.quarantined_bytes)} in quarantine"
                + (f"; its process is {state}" if state else ""),
                "continue or end that process: its slots come back with it",
            )


def of_namespaces(namespaces: Sequence[NamespaceInfo]) -> Iterator[Trouble]:
    """Of names with several layouts, and of rules whose namespaces have all that they may."""
    by_name: dict[str, list[NamespaceInfo]] = {}
    for info in namespaces:
        by_name.setdefault(f"{info.spec.tenant}/{info.spec.name}", []).append(info)
    for name, layouts in by_name.items():
        fields = {each: None for info in layouts for each in info.sibling_differences}
        if fields:
            yield Trouble(
                Weight.WARNING,
                f"{name} has {len(layouts)} layouts that share nothing: they differ in "
                + ", ".join(_contrast(each, layouts) for each in fields),
                _agree(fields),
            )
    for rule, info in {info.rule: info for info in namespaces if info.rule}.items():
        quotas = zip(_TIERS, info.occupied_bytes, info.limit_bytes, strict=False)
        for tier, occupied, limit in quotas:
            if limit and occupied > _AT_LIMIT * limit:
                yield Trouble(
                    Weight.WARNING,
                    f"rule {rule} is at its limit: {human_bytes(occupied)} of "
                    f"{human_bytes(limit)} of {tier}; its namespaces evict their own blocks",
                    f"raise namespaces.{rule}.{tier.lower()}.limit, if others can spare it",
                )


def _contrast(field: str, layouts: Sequence[NamespaceInfo]) -> str:
    """`dtype (bf16, fp16)`; the field alone if its values are long."""
    values = sorted({_value(info, field) or "none" for info in layouts})
    said = f"{field} ({', '.join(values)})"
    return said if len(said) <= _MOST_CHARACTERS else field


def _value(info: NamespaceInfo, field: str) -> str:
    if field.startswith("extra."):
        return info.spec.extra.get(field.removeprefix("extra."), "")
    value = getattr(info.spec, field, "")
    return str(value) if isinstance(value, str | int) else "+".join(map(str, value))


def _agree(fields: Iterable[str]) -> str:
    if any("hash_seed" in each for each in fields):
        return "start all engines with the same PYTHONHASHSEED, or all without"
    return "start all engines of that name alike, or give them names of their own"


def _state_name(tier: TierStats) -> str:
    return TierStats.State.Name(tier.state).lower()
