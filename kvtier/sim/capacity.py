"""How large a tier is: a share of a trace's blocks, or bytes."""

from __future__ import annotations

from typing import NamedTuple

from kvtier.config import parse_size
from kvtier.errors import ConfigError
from kvtier.sim.trace import Trace

_TIERS = ("host", "disk")


class Capacity(NamedTuple):
    """One of the two is set."""

    fraction: float | None = None
    size_bytes: int | None = None

    def blocks(self, trace: Trace, block_bytes: float | None) -> int:
        """At least 1. Raises ConfigError if bytes are given and a block's are not known."""
        if self.fraction is not None:
            return max(1, int(self.fraction * trace.unique_blocks))
        assert self.size_bytes is not None
        if block_bytes is None:
            raise ConfigError(
                f"--capacity in bytes: how large are the blocks of {trace.name}? "
                "Give --block-bytes or --model, or capacities as 5%"
            )
        return max(1, int(self.size_bytes / block_bytes))


def parse_capacity(text: str) -> Capacity:
    """Of `5%`, a share of the unique blocks, or `64GiB`; else a ValueError."""
    text = text.strip()
    if not text.endswith("%"):
        try:
            size_bytes = parse_size(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is neither a share, as 5%, nor a size, as 64GiB") from error
        if not size_bytes:
            raise ValueError(f"{text!r} is nothing")
        return Capacity(size_bytes=size_bytes)
    try:
        fraction = float(text[:-1]) / 100
    except ValueError as error:
        raise ValueError(f"{text!r} is no share: write 5% or 0.5%") from error
    if not 0 < fraction <= 1:
        raise ValueError(f"{text!r} is not more than 0% and at most 100%")
    return Capacity(fraction=fraction)


def parse_capacities(text: str) -> list[Capacity]:
    """Of `1%,5%,64GiB`; else a ValueError."""
    return [parse_capacity(each) for each in text.split(",")]


def parse_tiers(text: str) -> list[Capacity]:
    """HOST's, and DISK's if there is one, of `host=5%,disk=1TiB`; else a ValueError."""
    found: dict[str, Capacity] = {}
    for each in text.split(","):
        name, equals, capacity = each.strip().partition("=")
        if name not in _TIERS or not equals or name in found:
            raise ValueError(f"{each!r}: write host=SIZE,disk=SIZE")
        found[name] = parse_capacity(capacity)
    if "host" not in found:
        raise ValueError("there is no host=SIZE")
    return [found[name] for name in _TIERS if name in found]
