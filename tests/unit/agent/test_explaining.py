"""`agent.operating.explaining`: every fate, of blocks that really met it."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kvtier.agent.moving.demotion import WritePolicy
from kvtier.agent.operating.explaining import Explaining, Explanation, Fate
from kvtier.agent.operating.history import History
from kvtier.agent.placing.evicting import evict
from kvtier.agent.sessions.namespaces import FIRST_GENERATION
from kvtier.core.block import BlockKeys, Lane, Tier, Wait
from kvtier.core.cause import Cause
from kvtier.core.namespace import NamespaceSpec, identity_digest
from kvtier.core.policies.base import NEVER
from kvtier.core.policies.lru import Lru
from kvtier.testing.redis_servers import RedisServer
from kvtier.tiers.cluster.sealing import key_name
from kvtier.tiers.cluster.url import Transport
from tests.unit.agent.cluster_agent import PREFIX, ClusterAgent
from tests.unit.agent.disk_agent import (
    OK,
    PAGE,
    REFUSED,
    SPEC,
    DiskAgent,
    GatedIO,
    in_time,
    on_loop,
    sequence,
    until,
)

KEYS = sequence("a", 4)
OTHER = NamespaceSpec(name="other", block_bytes=(2 * PAGE,))


class Picky(Lru):
    """Lets nothing in that begins with a zero byte."""

    def worth(self, lane: Lane, block_hash: bytes, parent: int) -> float:
        return super().worth(lane, block_hash, parent) if block_hash[0] else NEVER


def explaining(agent: DiskAgent | ClusterAgent, blocks: int = 1024) -> Explaining:
    """Wired as in `kvtier.daemon`, before the agent has any block."""
    history = History(blocks, time.time) if blocks else None
    disk = agent.disk if isinstance(agent, DiskAgent) else None
    cluster = agent.cluster if isinstance(agent, ClusterAgent) else None
    tiers = [agent.host, *([disk.tier] if disk else [])]
    if history is not None:
        for tier in tiers:
            history.listen(tier)
        agent.storing.on_refused = history.note_refusals
        if disk is not None:
            disk.writer.on_refused = partial(
                history.note_refusals, cause=Cause.ADMISSION, tier=Tier.DISK
            )
        if cluster is not None:
            cluster.reader.on_damaged = history.note_damaged_value
    return Explaining(
        agent.namespaces,
        agent.promotion,
        agent.leases,
        history,
        {tier.tier: tier.policy_name for tier in tiers},
        disk=disk,
        cluster=cluster,
    )


async def explained(
    why: Explaining,
    agent: DiskAgent | ClusterAgent,
    keys: BlockKeys = KEYS,
    spec: NamespaceSpec = SPEC,
) -> list[Explanation]:
    return await in_time(why.explain(agent.session(spec).namespace, keys))


def fates(found: Sequence[Explanation]) -> list[Fate]:
    return [each.fate for each in found]


# What is here.


@on_loop
async def test_cached_names_every_tier_and_whoever_uses_it(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent)
        await agent.store(KEYS)
        await until(lambda: all(agent.on_disk(KEYS)))
        await agent.disk.writer.settled()
        agent.leave_host(sequence("a", 2, start=2))
        lease = (await agent.load(sequence("a", 1))).lease
        found = await explained(why, agent)
        assert fates(found) == [Fate.CACHED] * 4
        assert [each.tiers for each in found] == [[Tier.HOST, Tier.DISK]] * 2 + [[Tier.DISK]] * 2
        assert [each.lease_count for each in found] == [1, 0, 0, 0]
        agent.grants.release(lease)
        agent.audit()


@on_loop
async def test_an_explanation_is_no_use_and_moves_nothing(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent)
        await agent.store_on_disk(KEYS)
        await agent.store(sequence("b", 2))
        coldest = agent.host_class().policy.victim()
        counted = replace(agent.host_class().counters), replace(agent.disk_class().counters)
        await explained(why, agent)
        await explained(why, agent, sequence("b", 2))
        assert agent.host_class().policy.victim() == coldest
        assert (agent.host_class().counters, agent.disk_class().counters) == counted
        assert not any(agent.in_host(KEYS))


@on_loop
async def test_what_is_under_way_is_pending(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        why = explaining(agent)
        await agent.store_on_disk(KEYS)
        io.shut("read")
        loading = asyncio.ensure_future(agent.load_and_release(KEYS))
        await until(lambda: io.waiting("read"))
        agent.disk_class().forget(agent.disk_class().find_many(KEYS.lane, KEYS.hashes)[3])
        [last] = (await explained(why, agent))[3:]
        assert (last.fate, last.tiers) == (Fate.PENDING, [Tier.HOST])
        assert last.reason == "on its way from DISK"
        io.let_pass()
        await in_time(loading)


@on_loop
async def test_what_a_worker_is_storing_is_pending(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent)
        session = agent.session()
        granted = await agent.storing.reserve(session, [KEYS])
        found = await explained(why, agent)
        assert fates(found) == [Fate.PENDING] * 4
        assert found[0].reason == "being stored by a worker"
        await agent.storing.commit(session, granted.lease.lease_id)
        assert fates(await explained(why, agent)) == [Fate.CACHED] * 4


@on_loop
async def test_pinned_blocks_are_told_of(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent)
        await agent.store(KEYS)
        pinned = BlockKeys(KEYS.lane, KEYS.hashes[1:2])
        pin = await agent.pins.create(agent.session().namespace, pinned, ttl_seconds=60.0)
        assert [each.is_pinned for each in await explained(why, agent)] == [False, True] + [
            False
        ] * 2
        agent.pins.delete(pin.pin_id)


# What is not here any more.


@on_loop
async def test_evicted_says_when_by_which_policy_and_for_what(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=16, write_policy=WritePolicy.AFTER_HITS) as agent:
        why = explaining(agent)
        before = int(time.time())
        await agent.store(KEYS)
        for name in "bcd":
            await agent.store(sequence(name, 4))
        found = await explained(why, agent)
        assert found[-1].fate is Fate.EVICTED
        assert found[-1].left_tier is Tier.HOST
        assert found[-1].reason == "lru: to make room for others of its namespace"
        assert before <= found[-1].time <= time.time()


@on_loop
async def test_evicted_names_the_namespace_that_took_the_space(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64, write_policy=WritePolicy.AFTER_HITS) as agent:
        why = explaining(agent)
        many = sequence("a", 60)
        await agent.store(many)
        for number in range(8):
            await agent.store(sequence(f"other {number}", 8), OTHER)
        reasons = {each.reason for each in await explained(why, agent, many)}
        assert f"lru: its space went to {OTHER.label}, which used it more" in reasons


@on_loop
async def test_what_left_disk_last_was_in_disk(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent)
        await agent.store_on_disk(KEYS)
        agent.disk_class().evict_one()
        found = await explained(why, agent)
        assert fates(found) == [Fate.CACHED] * 3 + [Fate.EVICTED]
        assert found[3].left_tier is Tier.DISK


@on_loop
async def test_damaged_is_what_disk_gave_back_wrong(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent)
        await agent.store_on_disk(KEYS)
        agent.spoil(KEYS, 1)
        await agent.load_and_release(KEYS, wait=Wait.ALL)
        found = await explained(why, agent)
        assert fates(found)[1] is Fate.DAMAGED
        assert found[1].left_tier is Tier.DISK
        assert "checksum" in found[1].reason


@on_loop
async def test_what_a_failed_sync_lost_counts_as_damaged(tmp_path: Path) -> None:
    io = GatedIO()
    async with DiskAgent(tmp_path, io=io) as agent:
        why = explaining(agent)
        await agent.store_on_disk(KEYS)
        io.fail_syncs(errno.EIO, calls=1)
        with pytest.raises(OSError, match="Input/output"):
            await agent.disk.demotion.flush()
        found = await explained(why, agent)
        assert fates(found) == [Fate.DAMAGED] * 4
        assert "sync" in found[0].reason


@on_loop
async def test_expired_is_what_outlived_its_time(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent)
        await agent.store(KEYS)
        await agent.quiet()
        everywhere = frozenset({Tier.HOST, Tier.DISK})
        await evict(agent.session().namespace, KEYS, everywhere, cause=Cause.EXPIRED)
        assert fates(await explained(why, agent)) == [Fate.EXPIRED] * 4


@on_loop
async def test_removed_on_request_is_told_from_an_invalidation(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent)
        await agent.store(KEYS)
        await agent.quiet()
        last = sequence("a", 1, start=3)
        await in_time(
            agent.upkeep.evict(SPEC.label, lambda _: last, frozenset(Tier), dry_run=False)
        )
        await in_time(agent.upkeep.invalidate(SPEC.label))
        found = await explained(why, agent)
        assert fates(found) == [Fate.REMOVED] * 4
        assert [each.reason for each in found] == ["the namespace was invalidated"] * 3 + [
            "evicted on request"
        ]


# What was not let in.


@on_loop
async def test_not_admitted_for_the_session_s_share(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=64, max_share=0.125) as agent:
        why = explaining(agent)
        many = sequence("a", 200)  # more than a slice
        statuses = await agent.store(many)
        found = await explained(why, agent, many)
        refused = statuses.index(REFUSED)
        assert fates(found) == [Fate.CACHED] * refused + [Fate.NOT_ADMITTED] * (200 - refused)
        assert {each.reason for each in found[refused:]} == {
            "no room within its session's leases.max_share"
        }
        assert found[-1].left_tier is Tier.HOST
        assert why.history is not None
        assert why.history.entry_count == 200 - refused


@on_loop
async def test_not_admitted_as_all_is_in_use(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, host_pages=16) as agent:
        why = explaining(agent)
        most = sequence("a", 40)
        stored = (await agent.store(most)).count(OK)
        lease = (await agent.load(sequence("a", stored))).lease
        others = sequence("b", 100)  # more than a slice
        assert await agent.store(others) == [REFUSED] * 100
        found = await explained(why, agent, others)
        assert fates(found) == [Fate.NOT_ADMITTED] * 100
        assert {each.reason for each in found} == {"no room: what could have made way was in use"}
        agent.grants.release(lease)


@on_loop
async def test_not_admitted_by_the_policy(tmp_path: Path) -> None:
    policy = f"{__name__}:{Picky.__name__}"
    async with DiskAgent(tmp_path, host_policy=policy) as agent:
        why = explaining(agent)
        names = [bytes([first]) * 16 for first in (1, 0)]
        for name in names:
            await agent.store(BlockKeys(Lane(), (name,)))
        [there] = await explained(why, agent, BlockKeys(Lane(), (names[0],)))
        [refused] = await explained(why, agent, BlockKeys(Lane(), (names[1],)))
        assert (there.fate, refused.fate) == (Fate.CACHED, Fate.NOT_ADMITTED)
        assert refused.reason.endswith("admission")


@on_loop
async def test_what_left_host_says_that_disk_had_not_let_it_in(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, admission="second_hit") as agent:
        why = explaining(agent)
        await agent.store(KEYS)
        await until(lambda: agent.disk_class().counters.unadmitted == 4)
        assert fates(await explained(why, agent)) == [Fate.CACHED] * 4
        agent.leave_host(KEYS)
        found = await explained(why, agent)
        assert fates(found) == [Fate.EVICTED] * 4
        assert {each.left_tier for each in found} == {Tier.HOST}
        assert all(
            each.reason.endswith("; DISK had not let it in: the tier's admission") for each in found
        )


# What nobody knows.


@on_loop
async def test_unknown_was_never_stored_or_is_forgotten(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent, blocks=32)
        [found] = await explained(why, agent, sequence("a", 1))
        assert (found.fate, found.reason) == (Fate.UNKNOWN, "never stored since the agent's start")
        assert why.history is not None
        for number in range(33):
            why.history.note(99, Lane(), bytes([number]) * 16, Tier.HOST, Cause.EVICTED)
        [found] = await explained(why, agent, sequence("a", 1))
        assert found.reason == "never stored, or longer ago than the history reaches"


@on_loop
async def test_without_a_history_it_says_so(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent, blocks=0)
        await agent.store_on_disk(KEYS)
        agent.disk_class().evict_one()
        found = await explained(why, agent)
        assert fates(found) == [Fate.CACHED] * 3 + [Fate.UNKNOWN]
        assert "history.blocks is 0" in found[3].reason


@on_loop
async def test_unknown_may_be_on_a_disk_that_is_still_being_read(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path, is_started=False) as agent:
        why = explaining(agent)
        [found] = await explained(why, agent, sequence("a", 1))
        assert found.fate is Fate.UNKNOWN
        assert "still being read" in found.reason
        await agent.disk.recover(agent.namespaces)


@on_loop
async def test_a_sibling_with_another_layout_is_named_with_the_fields(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent)
        sibling = replace(SPEC, dtype="fp8", extra={"device": "gpu"})
        agent.session()
        await agent.store_on_disk(KEYS, sibling)
        found = await explained(why, agent)
        assert fates(found) == [Fate.OTHER_LAYOUT] * 4
        assert found[0].tiers == [Tier.DISK]
        assert found[0].layout_differences == ["dtype", "extra.device"]
        assert found[0].reason == f"stored under {sibling.label}"
        elsewhere = replace(sibling, tenant="somebody")
        assert fates(await explained(why, agent, spec=elsewhere)) == [Fate.UNKNOWN] * 4


@on_loop
async def test_what_left_here_is_told_before_what_a_sibling_has(tmp_path: Path) -> None:
    async with DiskAgent(tmp_path) as agent:
        why = explaining(agent)
        await agent.store_on_disk(KEYS)
        agent.disk_class().evict_one()
        await agent.store(KEYS, replace(SPEC, dtype="fp8"))
        assert (await explained(why, agent))[3].fate is Fate.EVICTED


# CLUSTER.


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[RedisServer]:
    with RedisServer(Transport.UNIX) as server:
        yield server


def test_cluster_is_asked_for_what_is_not_here(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent:
            why = explaining(agent)
            await agent.store_in_cluster(KEYS)
            agent.cluster.existence.clear()
            found = await explained(why, agent)
            assert fates(found) == [Fate.CACHED] * 4
            assert found[0].tiers == [Tier.CLUSTER]

    test()


def test_damaged_is_what_cluster_gave_back_wrong(server: RedisServer) -> None:
    @on_loop
    async def test() -> None:
        async with ClusterAgent(server.url) as agent:
            why = explaining(agent)
            await agent.store_in_cluster(KEYS)
            identity = identity_digest(SPEC, FIRST_GENERATION)
            name = key_name(PREFIX, identity, Lane(), KEYS.hashes[2])
            server.call("SETRANGE", name, 1000, b"damaged")
            await agent.load(KEYS, wait=Wait.ALL)
            await agent.quiet()
            found = await explained(why, agent)
            assert found[2].fate is Fate.DAMAGED
            assert found[2].left_tier is Tier.CLUSTER

    test()
