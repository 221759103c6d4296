"""Behaviour of `kvtier.bench.policies`."""

from __future__ import annotations

import pytest

from kvtier.bench.policies import measure
from kvtier.core.policies.named import POLICIES


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_costs_no_more_with_more_blocks(name: str) -> None:
    measured = [measure(name, blocks, 0.3) for blocks in (2_000, 20_000)]
    small, large = (each["operations_per_second"] for each in measured)
    assert small < 2 / 0.8 * large
