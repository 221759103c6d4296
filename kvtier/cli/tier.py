"""`kvtier tier`: change a tier of a running agent."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from kvtier.cli.connection import admin
from kvtier.cli.consent import require_terminal
from kvtier.cli.document import print_json
from kvtier.cli.exit import ExitCode
from kvtier.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    AddressOption,
    JsonOption,
    TimeoutOption,
    YesOption,
)
from kvtier.cli.progress import ERASE
from kvtier.cli.text import human_bytes, plural
from kvtier.cli.tiers import name_of
from kvtier.core.block import Tier
from kvtier.core.capacity import LEAST_DISK_PATH_BYTES, LEAST_HOST_BYTES
from kvtier.errors import InvalidRequestError, KvtierError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvtier.client.admin import AdminClient
    from kvtier.v1.cache_admin_pb2 import Stats, TierStats

app = typer.Typer(help="Change a tier of a running agent.", no_args_is_help=True)

_LEAST = {Tier.HOST: LEAST_HOST_BYTES, Tier.DISK: LEAST_DISK_PATH_BYTES}
_KEYS = {f"{tier.name.lower()}.capacity": tier for tier in _LEAST}
_INTERVAL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Change:
    """A capacity to be set; `before` is the tier as it is."""

    capacity_bytes: int
    before: TierStats

    @property
    def name(self) -> str:
        return name_of(self.before)

    @property
    def tier(self) -> Tier:
        return Tier(self.before.tier)

    @property
    def is_smaller(self) -> bool:
        return self.capacity_bytes < self.before.capacity_bytes


@app.command("set")
def set_(
    assignments: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=SIZE...", help="host.capacity=64GiB, disk.capacity=2TiB, or both."
        ),
    ],
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait until a smaller tier is smaller.")
    ] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Give HOST or DISK another capacity, until the agent stops.

    Sizes are written as in the configuration, which the next start goes by. A larger capacity holds
    at once. A smaller one is reached by evicting what is coldest, while workers go on; what is
    leased goes when its leases end. Asks before it makes a tier smaller; scripts pass --yes.
    Interrupting the command does not end the change.

    With --json each report of progress is an object on a line of its own; the last has "done".

    Example: kvtier tier set host.capacity=64GiB disk.capacity=2TiB
    """
    wanted = parsed(assignments)
    with admin(address, timeout_seconds) as client:
        changes = changes_of(wanted, client.get_stats())
        shrinking = [change for change in changes if change.is_smaller]
        if shrinking and not yes:
            require_terminal(as_json=as_json)
            typer.confirm(question(shrinking), abort=True, err=True)
        for change in changes:
            answer = client.resize_tier(change.tier, change.capacity_bytes)
            if not as_json:
                typer.echo(f"{change.name}: capacity {human_bytes(answer.capacity_bytes)}")
        if as_json or not no_wait:
            _follow(client, changes, as_json=as_json, until_done=not no_wait)


def parsed(assignments: Sequence[str]) -> dict[Tier, int]:
    """Bytes by tier, from `host.capacity=64GiB`."""
    from kvtier.config.size import format_size, parse_size

    wanted: dict[Tier, int] = {}
    for assignment in assignments:
        key, _, size = assignment.partition("=")
        tier = _KEYS.get(key.strip().removeprefix("tiers."))
        if key.strip().removeprefix("tiers.").startswith("gpu."):
            raise InvalidRequestError(
                f"{assignment!r}: what a device has is set when the agent starts, in "
                "tiers.gpu.devices; sizes that can be changed are those of HOST and DISK"
            )
        if tier is None:
            raise InvalidRequestError(
                f"{assignment!r}: write {' or '.join(f'{each}=SIZE' for each in _KEYS)}"
            )
        if tier in wanted:
            raise InvalidRequestError(f"{key}: it is given twice")
        try:
            wanted[tier] = parse_size(size)
        except ValueError as error:
            raise InvalidRequestError(f"{key}: {size!r} is {error}") from error
        if wanted[tier] < _LEAST[tier]:
            raise InvalidRequestError(f"{key}: must be at least {format_size(_LEAST[tier])}")
    return wanted


def changes_of(wanted: dict[Tier, int], stats: Stats) -> list[Change]:
    """Raises NotFoundError for a tier that the agent has not."""
    here = {Tier(each.tier): each for each in stats.tiers}
    for tier in wanted:
        if tier not in here:
            raise NotFoundError(f"this agent has no {tier.name} tier: set tiers.disk.paths")
    return [Change(capacity, here[tier]) for tier, capacity in wanted.items()]


def question(shrinking: Sequence[Change]) -> str:
    """What would be lost, roughly."""
    return "; ".join(map(_described, shrinking)) + "?"


def _described(change: Change) -> str:
    before = change.before
    excess = max(0, before.used_bytes - change.capacity_bytes)
    sizes = f"from {human_bytes(before.capacity_bytes)} to {human_bytes(change.capacity_bytes)}"
    blocks = before.block_count * excess // before.used_bytes if before.used_bytes else 0
    lost = f"about {plural(blocks, 'block')}, {human_bytes(excess)}," if blocks else "few blocks"
    return f"Shrink {change.name} {sizes}, evicting {lost}".rstrip(",")


def _follow(
    client: AdminClient, changes: Sequence[Change], *, as_json: bool, until_done: bool
) -> None:
    """Shows how far it is, until no tier has more than it may have."""
    is_drawn = not as_json and sys.stderr.isatty()
    reports = _reports(client, changes)
    try:
        for tiers in reports:
            excess = sum(_excess_bytes(tier) for tier in tiers)
            is_last = not until_done or not excess
            if as_json:
                print_json(_document(tiers, is_done=not excess))
            elif is_drawn:
                typer.echo(f"{ERASE}{line(tiers)}", err=True, nl=False)
            if is_last:
                return
    except KeyboardInterrupt:
        typer.echo("kvtier: the agent goes on shrinking: see `kvtier tiers`", err=True)
        raise typer.Exit(ExitCode.FAILED) from None
    finally:
        if is_drawn:
            typer.echo(ERASE, err=True, nl=False)
    raise KvtierError("the agent ended the call before it was done: see its log")


def _reports(client: AdminClient, changes: Sequence[Change]) -> Iterator[list[TierStats]]:
    """The tiers concerned, at an interval. Raises KvtierError if somebody else changes them."""
    yield _tiers(client.get_stats(), changes)
    for stats in client.watch_stats(interval_seconds=_INTERVAL_SECONDS):
        yield _tiers(stats, changes)


def _tiers(stats: Stats, changes: Sequence[Change]) -> list[TierStats]:
    wanted = {change.before.tier: change.capacity_bytes for change in changes}
    found = [tier for tier in stats.tiers if tier.tier in wanted]
    for tier in found:
        if abs(tier.capacity_bytes - wanted[tier.tier]) > 64:  # paths share it in whole bytes
            raise KvtierError(
                f"{name_of(tier)} was given another capacity meanwhile: "
                f"{human_bytes(tier.capacity_bytes)}"
            )
    return found


def _excess_bytes(tier: TierStats) -> int:
    return max(0, tier.allocated_bytes - tier.capacity_bytes)


def line(tiers: Sequence[TierStats]) -> str:
    """What is still to go."""
    return ", ".join(
        f"{name_of(tier)}: {human_bytes(_excess_bytes(tier))} to go"
        for tier in tiers
        if _excess_bytes(tier)
    )


def _document(tiers: Sequence[TierStats], *, is_done: bool) -> dict[str, object]:
    return {
        "tiers": [
            {
                "tier": f"TIER_{name_of(tier)}",
                "capacity_bytes": tier.capacity_bytes,
                "allocated_bytes": tier.allocated_bytes,
            }
            for tier in tiers
        ],
        "done": is_done,
    }
