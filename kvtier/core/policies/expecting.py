"""Policies that say what will be asked for soon."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from kvtier.core.policies.base import Policy


@runtime_checkable
class Expecting(Protocol):
    """What a `Policy` may have besides; one without it expects nothing."""

    def expected(self, within_seconds: float, least_chance: float, count: int) -> list[int]:
        """The last blocks (rows) of up to `count` chains that come back within so many seconds from
        now with at least this probability; the likeliest first. It changes nothing, and costs
        O(count): a sample of the chains is enough.
        """
        ...


def expected(policy: Policy, within_seconds: float, least_chance: float, count: int) -> list[int]:
    """What a policy expects; nothing, if it does not say."""
    if not isinstance(policy, Expecting):
        return []
    return policy.expected(within_seconds, least_chance, count)


def chance_of_return(
    rates: Sequence[float], edges: Sequence[float], age: float, within_seconds: float
) -> float:
    """The probability that something that has not come back until `age` does within so many seconds
    more, where it comes at `rates[i]` a second from age `edges[i]` on.

    One minus the ratio of the survival function at two ages, from its hazard (Kaplan and Meier,
    JASA 1958; the tables of `hit_density` are such hazards).
    """
    end, expected_events = age + within_seconds, 0.0
    place = max(0, bisect_right(edges, age) - 1)
    while age < end:
        stop = end if place + 1 == len(edges) else min(end, edges[place + 1])
        expected_events += rates[place] * (stop - age)
        age, place = stop, place + 1
    return -math.expm1(-expected_events)
