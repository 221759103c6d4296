"""Quotas of namespaces: what they never exceed, and what others leave them."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from kvtier.core.block import BlockStatus, Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.core.rules import NO_RULE, Amount, NamespaceRule, Quota, rule_for
from kvtier.tiers.holding import Holding
from tests.model.node import Node
from tests.unit.agent.disk_agent import MIB, DiskAgent, on_loop, until
from tests.unit.agent.worker import PAGE, Worker, sequence

OK = BlockStatus.OK
CAPACITY = 2 * MIB


def rule(
    pattern: str,
    *,
    limit: float | None = None,
    guaranteed: float = 0.0,
    tier: Tier = Tier.HOST,
) -> NamespaceRule:
    quota = Quota(None if limit is None else Amount(share=limit), Amount(share=guaranteed))
    return NamespaceRule(pattern, quotas={tier: quota})


class Tenants:
    """Workers of several tenants, and what holds of their quotas after every turn of the loop; a
    context manager."""

    def __init__(self, rules: list[NamespaceRule], *workers: tuple[str, int]) -> None:
        self.node = Node(CAPACITY, rules=rules)
        self.workers = [
            Worker(self.node, f"m{number}", size * PAGE, tenant)
            for number, (tenant, size) in enumerate(workers)
        ]
        self.kept: dict[Holding, int] = {}
        self._audit = self.node.audit
        self.node.audit = self.audit  # type: ignore[method-assign]

    def holding(self, worker: Worker) -> Holding:
        return self.node.host.holding(worker.session.namespace.namespace_id)

    def audit(self) -> None:
        self._audit()
        for holding in {self.holding(worker) for worker in self.workers}:
            limit, kept = holding.limit_bytes, holding.kept_bytes
            assert limit is None or holding.occupied_bytes <= limit
            before = self.kept.get(holding, 0)
            assert kept >= min(before, holding.guaranteed_bytes), "pushed below its guarantee"
            self.kept[holding] = kept

    def store(self, worker: Worker, name: str, blocks: int) -> int:
        [statuses] = self.node.run(worker.store(sequence(name, blocks)))
        return sum(status in (OK, BlockStatus.PRESENT) for status in statuses)

    def fill(self, worker: Worker, name: str = "fill") -> None:
        for number in range(2 * CAPACITY // (16 * worker.block_bytes)):
            self.store(worker, f"{name} {number}", 16)

    def __enter__(self) -> Tenants:
        return self

    def __exit__(self, *exc: object) -> None:
        self.node.close()


def test_the_first_rule_that_matches_counts() -> None:
    rules = [rule("acme/llama"), rule("acme/*"), rule("*")]
    assert rule_for(rules, "acme", "llama") is rules[0]
    assert rule_for(rules, "acme", "qwen") is rules[1]
    assert rule_for(rules, "acme2", "llama") is rules[2]
    assert rule_for(rules[:2], "acme2", "llama") is NO_RULE


def test_at_its_limit_a_namespace_evicts_its_own_blocks() -> None:
    with Tenants([rule("a/*", limit=0.25)], ("a", 1), ("b", 1)) as tenants:
        a, b = tenants.workers
        tenants.fill(b, "first")
        others = b.stored
        tenants.fill(a)
        assert tenants.holding(a).occupied_bytes > CAPACITY // 5
        assert tenants.store(a, "new", 16) == 16
        assert a.size_class.counters.evicted
        tenants.fill(b, "again")  # an extent that was taken from it was larger than was needed
        assert b.stored > others * 0.7


def test_an_idle_namespace_keeps_what_it_is_guaranteed() -> None:
    with Tenants([rule("a/*", guaranteed=0.4)], ("a", 1), ("b", 2)) as tenants:
        a, b = tenants.workers
        tenants.fill(a)
        for number in range(3):
            tenants.fill(b, f"{number}")
        kept = tenants.holding(a).kept_bytes
        assert 0.4 * CAPACITY <= kept < 0.7 * CAPACITY
        assert a.stored * PAGE > 0.3 * CAPACITY
        assert tenants.holding(b).occupied_bytes > 0.3 * CAPACITY


@pytest.mark.parametrize("guaranteed", [0.0, 0.5])
def test_who_has_less_than_is_guaranteed_gets_it_from_whoever_was_first(guaranteed: float) -> None:
    """Though what the other has is younger: it is used all the time."""
    with Tenants([rule("a/*", guaranteed=guaranteed)], ("a", 1), ("b", 1)) as tenants:
        a, b = tenants.workers
        tenants.fill(b)
        assert tenants.holding(b).kept_bytes > 0.9 * CAPACITY
        for number in range(60):
            assert tenants.store(a, f"{number}", 16) >= 4
            residency = b.size_class.residency
            b.size_class.touch([row for row, slot in enumerate(residency.slot) if slot >= 0])
        if guaranteed:
            assert tenants.holding(a).kept_bytes > 0.4 * CAPACITY
            assert tenants.store(b, "last", 16) == 16
        else:
            assert tenants.holding(a).kept_bytes < 0.1 * CAPACITY


def test_namespaces_of_one_rule_share_its_limit() -> None:
    with Tenants([rule("a/*", limit=0.3)], ("a", 1), ("a", 2), ("b", 1)) as tenants:
        first, second, _ = tenants.workers
        assert tenants.holding(first) is tenants.holding(second)
        tenants.fill(first)
        assert tenants.store(second, "new", 8) == 8  # from its sibling, which is older
        tenants.fill(second)
        assert tenants.holding(second).occupied_bytes <= 0.3 * CAPACITY


@pytest.mark.parametrize("seed", range(6))
def test_quotas_hold_at_every_step(seed: int) -> None:
    random = Random(seed)
    rules = [
        rule("a/*", limit=random.uniform(0.2, 0.6), guaranteed=random.uniform(0.0, 0.2)),
        rule("b/*", guaranteed=random.uniform(0.1, 0.4)),
    ]
    with Tenants(
        rules, ("a", random.choice([1, 3])), ("b", random.choice([1, 2])), ("c", 1)
    ) as tenants:
        tenants.node.mover.turns_before = random.randrange(3)
        for step in range(150):
            chosen = random.choices(tenants.workers, [1, 1 + step // 50, 2], k=2)
            stores = [
                each.store(sequence(f"{random.randrange(60)}", random.randrange(1, 24)))
                for each in chosen
            ]
            loads = random.choice(tenants.workers)
            granted, *_ = tenants.node.run(
                loads.load(sequence(f"{random.randrange(60)}", 8), random.uniform(0.1, 5)), *stores
            )
            if random.random() < 0.7:
                tenants.node.grants.release(granted.lease)
            tenants.node.clock.advance(random.uniform(0, 2))
        tenants.node.clock.advance(60)
        tenants.node.settle()
        for worker in tenants.workers:  # whoever comes is served
            assert tenants.store(worker, "the last", 4) == 4


# On DISK.


def of(tenant: str, pages: int = 1) -> NamespaceSpec:
    return NamespaceSpec(tenant=tenant, name="m", block_bytes=(pages * PAGE,))


def holding_of(agent: DiskAgent, spec: NamespaceSpec) -> Holding:
    namespace_id = agent.session(spec).namespace.namespace_id
    return agent.disk.tier.holding(namespace_id)


@on_loop
async def test_quotas_hold_on_disk_and_a_lower_limit_after_a_restart(tmp_path: Path) -> None:
    limited, other = of("a"), of("b")
    quotas = [rule("a/*", limit=0.25, tier=Tier.DISK)]
    sizes = {"disk_bytes": 16 * MIB, "host_pages": 2048}
    async with DiskAgent(tmp_path, rules=quotas, **sizes) as agent:  # type: ignore[arg-type]
        for number in range(12):
            await agent.store(sequence(f"{number}", 256), limited)
            await agent.store(sequence(f"{number}", 128), other)
            await agent.quiet()
            assert holding_of(agent, limited).occupied_bytes <= 4 * MIB
        assert agent.disk_class(limited).counters.evicted
        assert not agent.disk_class(other).counters.evicted
        agent.audit()
    lower = [rule("a/*", limit=0.1, tier=Tier.DISK)]
    async with DiskAgent(tmp_path, rules=lower, **sizes) as agent:  # type: ignore[arg-type]
        await until(lambda: holding_of(agent, limited).occupied_bytes <= 1.6 * MIB)
        assert len(agent.disk_class(limited).residency) > 200
        assert len(agent.disk_class(other).residency) == 12 * 128
        agent.audit()
