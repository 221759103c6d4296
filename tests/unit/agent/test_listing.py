"""`agent.operating.listing`: what is there all the time is listed once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from kvtier.agent.operating.listing import Listed, Order, Place, Wish, page_of_blocks
from kvtier.core.ages import Ages
from kvtier.core.block import Lane, Tier
from kvtier.core.namespace import NamespaceSpec
from kvtier.core.rules import NamespaceRule
from kvtier.errors import InvalidRequestError
from kvtier.testing import ManualClock
from tests.unit.agent.disk_agent import PAGE, SPEC, DiskAgent, on_loop, sequence, until

BOTH = frozenset({Tier.HOST, Tier.DISK})
ALL = Wish(BOTH)
LONG, SHORT = sequence("long", 12), sequence("short", 5)
HYBRID = NamespaceSpec(name="hybrid", block_bytes=(PAGE, 2 * PAGE))


async def pages(
    agent: DiskAgent, wish: Wish, size: int = 100, spec: NamespaceSpec = SPEC
) -> list[Listed]:
    """All of them; each token goes through its text."""
    namespace, found = agent.session(spec).namespace, list[Listed]()
    after = None
    while True:
        page, after = await page_of_blocks(namespace, wish, size, after)
        assert len(page) <= size
        found += page
        assert len(found) < 1000, "it does not end"
        if after is None:
            return found
        after = Place.parse(str(after))


async def filled(agent: DiskAgent) -> None:
    """LONG is in both tiers, SHORT on DISK alone."""
    await agent.store(LONG)
    await until(lambda: all(agent.on_disk(LONG)))
    await agent.quiet()
    await agent.store_on_disk(SHORT)


def names(listed: list[Listed]) -> Counter[tuple[Tier, bytes]]:
    return Counter((each.tier, each.block_hash) for each in listed)


def expected() -> Counter[tuple[Tier, bytes]]:
    return Counter(
        [(tier, each) for tier in (Tier.HOST, Tier.DISK) for each in LONG.hashes]
        + [(Tier.DISK, each) for each in SHORT.hashes]
    )


@on_loop
async def test_every_block_is_listed_once_for_each_tier_whatever_the_page(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await filled(agent)
        for order in Order:
            for size in (1, 4, 29, 100):
                for descending in (False, True):
                    wish = replace(ALL, order=order, descending=descending)
                    assert names(await pages(agent, wish, size)) == expected(), (order, size)


@on_loop
async def test_a_block_is_listed_with_what_is_known_of_it(tmp_path: Path) -> None:
    clock = ManualClock()
    async with DiskAgent(tmp_path, ages=Ages(clock, clock)) as agent:
        await filled(agent)
        clock.advance(60.0)
        await agent.load_and_release(sequence("long", 2))
        granted = await agent.load(sequence("long", 1))
        pinned = sequence("long", 4)
        [pin] = [
            await agent.pins.create(agent.session().namespace, pinned, ttl_seconds=9.0, reason="")
        ]
        first = await pages(agent, replace(ALL, tiers=frozenset({Tier.HOST})))
        [root] = [each for each in first if each.block_hash == LONG.hashes[0]]
        assert root == Listed(
            Lane(), LONG.hashes[0], 0, Tier.HOST, [Tier.DISK], PAGE, 60.0, 2, True, True
        )
        uses = Counter(each.hit_count for each in first)
        assert uses == {2: 1, 1: 1, 0: 10}
        assert names(await pages(agent, replace(ALL, pinned_only=True))) == Counter(
            (tier, each) for tier in BOTH for each in pinned.hashes
        )
        leased = await pages(agent, replace(ALL, leased_only=True))
        assert names(leased) == {(Tier.HOST, LONG.hashes[0]): 1}
        agent.grants.release(granted.lease)
        agent.pins.delete(pin.pin_id)
        assert await pages(agent, replace(ALL, leased_only=True)) == []
        assert await pages(agent, replace(ALL, pinned_only=True)) == []


@on_loop
async def test_orders_are_orders(tmp_path: Path) -> None:
    clock = ManualClock()
    async with DiskAgent(tmp_path, ages=Ages(clock, clock)) as agent:
        for number in range(6):
            await agent.store(sequence(f"{number}", 1 + number))
            for _ in range(number):
                await agent.load_and_release(sequence(f"{number}", 1))
            clock.advance(10.0)
        host = replace(ALL, tiers=frozenset({Tier.HOST}))
        for order, key in (
            (Order.AGE, lambda each: each.age_seconds),
            (Order.HITS, lambda each: each.hit_count),
            (Order.POSITION, lambda each: each.position),
        ):
            up = [key(each) for each in await pages(agent, replace(host, order=order), 4)]
            assert up == sorted(up), order
            wish = replace(host, order=order, descending=True)
            down = [key(each) for each in await pages(agent, wish, 4)]
            assert down == sorted(up, reverse=True), order
            assert len(set(up)) > 3
        old = await pages(agent, replace(host, min_age_seconds=40.0))
        assert sorted(each.age_seconds for each in old) == [40.0] * 3 + [50.0] * 2 + [60.0]
        ends = replace(host, ends_only=True, order=Order.SIZE, descending=True)
        assert [each.position for each in await pages(agent, ends, 2)] == [5, 4, 3, 2, 1, 0]


@on_loop
async def test_keys_are_listed_in_their_order_where_they_are(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        await filled(agent)
        wish = replace(ALL, keys=sequence("short", 8))
        assert [each.block_hash for each in await pages(agent, wish, 2)] == list(SHORT.hashes)
        wish = replace(ALL, keys=sequence("long", 3, start=2), order=Order.POSITION)
        assert [(each.position, each.tier) for each in await pages(agent, wish, 1)] == [
            (position, tier) for position in (2, 3, 4) for tier in (Tier.HOST, Tier.DISK)
        ]


@on_loop
async def test_groups_of_one_size_or_several_are_listed(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        for group in range(2):
            await agent.store(sequence("a", 4, lane=Lane(group)), HYBRID)
        host = replace(ALL, tiers=frozenset({Tier.HOST}), order=Order.SIZE)
        found = await pages(agent, host, 3, HYBRID)
        assert [each.slot_bytes for each in found] == [PAGE] * 4 + [2 * PAGE] * 4
        assert [each.lane.group for each in found] == [0] * 4 + [1] * 4


@on_loop
async def test_what_has_lived_long_enough_is_not_listed(tmp_path: Path) -> None:
    clock, rules = ManualClock(), [NamespaceRule("default/*", 100.0)]
    async with DiskAgent(tmp_path, ages=Ages(clock, clock), rules=rules) as agent:
        await agent.store(SHORT)
        clock.advance(99.0)
        assert len(await pages(agent, replace(ALL, tiers=frozenset({Tier.HOST})))) == 5
        clock.advance(1.0)
        assert await pages(agent, ALL) == []


@pytest.mark.parametrize("order", [Order.TABLE, Order.AGE, Order.POSITION])
@on_loop
async def test_what_stays_is_listed_once_while_others_come_and_go(
    tmp_path: Path, order: Order
) -> None:
    random = Random(order)
    async with DiskAgent(tmp_path, host_pages=2000) as agent:
        stays = [sequence(f"stays {number}", 8) for number in range(20)]
        for number, keys in enumerate(stays):
            await agent.store(keys)
            await agent.store(sequence(f"goes {number}", 8))
        wish, after = replace(ALL, tiers=frozenset({Tier.HOST}), order=order), None
        namespace, found = agent.session().namespace, list[Listed]()
        going = list(range(20))
        while True:
            page, after = await page_of_blocks(namespace, wish, 7, after)
            found += page
            if after is None:
                break
            if going:
                agent.leave_host(sequence(f"goes {going.pop(random.randrange(len(going)))}", 8))
            await agent.store(sequence(f"comes {len(found)}", 3))
        listed = names(found)
        for keys in stays:
            for each in keys.hashes:
                assert listed[Tier.HOST, each] == 1
        assert sum(listed.values()) < 2 * 8 * 20 + 3 * len(found)
        await agent.quiet()
        agent.audit()


@on_loop
async def test_others_have_their_turns_while_all_is_looked_at(tmp_path: Path) -> None:
    count = 3 * 4096 + 1
    async with DiskAgent(tmp_path, host_pages=count + 64) as agent:
        for start in range(0, count, 1024):
            size = min(1024, count - start)
            assert set(await agent.store(sequence("a", size, start=start))) == {1}
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(others())
        wish = replace(ALL, tiers=frozenset({Tier.HOST}), order=Order.HITS)
        page, _ = await page_of_blocks(agent.session().namespace, wish, 1000, None)
        assert len(page) == 1000
        # Between slices of rows, and of the page.
        assert turns >= 3 + 1000 // 64
        turns = 0
        await page_of_blocks(agent.session().namespace, replace(wish, order=Order.TABLE), 1, None)
        assert turns <= 1, "a page in the order of the table looks at no more than it needs"
        other.cancel()


@pytest.mark.parametrize(
    "token", ["", "x", "1/2", "0x0p0/0/-1", "0x0p0/-1/0", "0x0p0/0/1e9", "1/1/" + "9" * 40]
)
def test_a_token_that_nobody_gave_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequestError, match="page_token"):
        Place.parse(token)
