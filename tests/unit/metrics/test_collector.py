"""The numbers of an agent: what counts, for whom, and how long reading them takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from kvtier.core.block import BlockKeys, Lane
from kvtier.core.latency import Latency
from kvtier.core.lease import LeaseKind
from kvtier.metrics.catalogue import METRICS
from kvtier.metrics.exposition import render
from tests.faults.blocks import hashes_of
from tests.unit.metrics.books import BLOCK_BYTES, Books, books

HASHES = hashes_of("s", 10)


def run(
    test: Callable[[Books], Awaitable[None]],
    make: AbstractAsyncContextManager[Books] | None = None,
) -> None:
    async def inside() -> None:
        async with make or books() as found:
            await test(found)

    asyncio.run(inside())


def test_lookups_are_counted_by_what_they_find() -> None:
    async def test(books: Books) -> None:
        session = books.open()
        await books.store(session, HASHES[:6])
        await books.lookup(session, HASHES[:4])
        await books.lookup(session, HASHES)
        await books.lookup(session, HASHES[6:])
        samples = await books.collect()
        host = ("host", "default/m")
        assert samples.values["kvtier_lookups_total"] == {
            (*host, "hit"): 1,
            (*host, "partial"): 1,
            (*host, "miss"): 1,
        }
        blocks = {(*host, "hit"): 4 + 6, (*host, "miss"): 4 + 4}
        assert samples.values["kvtier_lookup_blocks_total"] == blocks
        tokens = {labels: 16 * count for labels, count in blocks.items()}
        assert samples.values["kvtier_lookup_tokens_total"] == tokens
        assert sum(samples.latencies["kvtier_lookup_seconds"]["default/m",].counts) == 3

    run(test)


def test_tokens_of_several_groups_and_shards_count_once() -> None:
    async def test(books: Books) -> None:
        session = books.open(
            block_bytes=(BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES), shards=2,
            extra={"group.0": "window 64"},
        )  # fmt: skip
        session.compute_seconds_per_block = 0.5
        for lane in (Lane(group, shard) for group in range(3) for shard in range(2)):
            await books.store(session, HASHES, lane)
            await books.lookup(session, HASHES, lane)
            await books.load(session, HASHES, lane)
        host = ("host", "default/m")
        # Group 0 has a window: group 1 leads.
        assert await books.value("lookup_tokens_total", *host, "hit") == 2 * 16 * 10
        assert await books.value("lookup_blocks_total", *host, "hit") == 6 * 10
        assert await books.value("hit_tokens_total", *host) == 16 * 10
        assert await books.value("hit_blocks_total", *host) == 6 * 10
        assert await books.value("compute_seconds_saved_total", "default/m") == 0.5 * 10

    run(test)


def test_a_worker_that_says_no_speed_saves_what_another_has_said() -> None:
    async def test(books: Books) -> None:
        scheduler, worker = books.open(), books.open()
        await books.store(worker, HASHES)
        await books.load(worker, HASHES)
        assert await books.value("compute_seconds_saved_total", "default/m") == 0
        scheduler.namespace.usage.compute_seconds_per_block = 0.25
        await books.load(worker, HASHES)
        assert await books.value("compute_seconds_saved_total", "default/m") == 2.5
        worker.compute_seconds_per_block = 1.0
        await books.load(worker, HASHES[:1])
        assert await books.value("compute_seconds_saved_total", "default/m") == 3.5

    run(test)


def test_what_leaves_and_what_is_not_let_in_has_a_reason() -> None:
    async def test(books: Books) -> None:
        session = books.open()
        await books.store(session, hashes_of("long", 1500))  # its share is 1024 slots
        refused = (await books.collect()).values["kvtier_refused_blocks_total"]
        share = refused["host", "default/m", "session_share"]
        assert share == pytest.approx(500, abs=40)
        assert sum(refused.values()) == share
        for number in range(12):
            await books.store(session, hashes_of(f"{number}", 200))
        assert await books.value("evicted_blocks_total", "host", "default/m", "evicted") > 500
        stored = await books.value("stored_blocks_total", "host", "default/m")
        assert await books.value("stored_bytes_total", "host", "default/m") == stored * BLOCK_BYTES

    run(test, books(tiers={"host": {"capacity": 8 << 20, "memory_reserve": 0, "policy": "lru"}}))


def test_wrong_digests_are_counted() -> None:
    async def test(books: Books) -> None:
        session, storing = books.open(), books.agent.storing
        granted = await storing.reserve(session, [BlockKeys(Lane(), tuple(HASHES[:2]))])
        await storing.commit(session, granted.lease.lease_id, [0, 1], [bytes(16)] * 2)
        assert await books.value("mismatched_blocks_total", "default/m") == 2

    run(test)


def test_leases_are_told_apart_and_the_oldest_has_an_age() -> None:
    async def test(books: Books) -> None:
        session, agent = books.open(), books.agent
        granted = await agent.storing.reserve(session, [BlockKeys(Lane(), tuple(HASHES))])
        assert await books.value("leases", "reservation") == 1
        agent.grants.revoke(granted.lease)
        assert await books.value("leases", "reservation") == 0
        assert await books.value("lease_bytes", "quarantine") == 10 * BLOCK_BYTES
        assert granted.lease.kind is LeaseKind.QUARANTINE
        granted.lease.begun_at -= 100
        assert await books.value("oldest_lease_seconds", "quarantine") == pytest.approx(100, abs=20)

    run(test)


def test_layouts_of_one_name_are_one_series_and_are_counted() -> None:
    async def test(books: Books) -> None:
        for dtype in ("bf16", "fp8"):
            await books.store(books.open(dtype=dtype), HASHES)
        assert await books.value("stored_blocks_total", "host", "default/m") == 20
        assert await books.value("open_layouts", "default/m") == 2
        books.disconnect()
        assert await books.value("open_layouts", "default/m") == 0

    run(test)


def test_names_beyond_the_bound_are_others() -> None:
    async def test(books: Books) -> None:
        for number in range(5):
            await books.store(books.open(f"m{number}"), HASHES)
        stored = (await books.collect()).values["kvtier_stored_blocks_total"]
        assert stored == {
            ("host", "default/m0"): 10,
            ("host", "default/m1"): 10,
            ("host", "other"): 30,
        }

    run(test, books(metrics={"max_namespaces": 2}))


def test_counters_never_run_backwards_when_namespaces_make_way() -> None:
    async def test(books: Books) -> None:
        seen: dict[tuple[str, ...], float] = {}
        others = ("host", "other", "miss")
        for number in range(12):
            session = books.open(f"m{number}")
            await books.lookup(session, HASHES)
            if number % 3 == 2:
                books.disconnect()
            lookups = (await books.collect()).values["kvtier_lookups_total"]
            assert lookups.get(others, 0) >= seen.get(others, 0)
            seen = dict(lookups)
        assert seen[others] >= 6
        assert len({labels[1] for labels in seen}) <= 2 + 1

    run(test, books(metrics={"max_namespaces": 2}, limits={"max_namespaces": 4}))


def test_a_namespace_that_makes_way_during_a_collection_counts_once() -> None:
    async def test(books: Books) -> None:
        for number in range(12):
            await books.lookup(books.open(f"m{number}"), HASHES)
        books.disconnect()
        collecting = asyncio.create_task(books.collect())
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # some of them have been read
        for number in range(12):  # all of them make way
            books.open(f"n{number}")
        samples = await collecting
        labels = ("host", "other", "miss")
        assert samples.values["kvtier_lookups_total"][labels] == 11
        assert await books.value("lookups_total", *labels) == 11

    run(test, books(metrics={"max_namespaces": 1}, limits={"max_namespaces": 12}))


def test_every_metric_can_be_rendered_in_both_formats() -> None:
    async def test(books: Books) -> None:
        session = books.open()
        await books.store(session, HASHES)
        samples = await books.collect()
        for accept in ("", "application/openmetrics-text; version=1.0.0"):
            body, content_type = render(samples, accept)
            text = body.decode()
            assert ("openmetrics" in content_type) == bool(accept)
            for name in METRICS:
                assert f"# TYPE {name.removesuffix('_total') if accept else name} " in text
            assert 'kvtier_store_seconds_bucket{le="+Inf",namespace="default/m"} 1.0' in text

    run(test)


def test_labels_of_samples_are_those_of_the_catalogue() -> None:
    async def test(books: Books) -> None:
        await books.store(books.open(), HASHES)
        samples = await books.collect()
        labels = {name: [*each] for name, each in samples.values.items()}
        labels |= {name: [*each] for name, each in samples.latencies.items()}
        for name, found in labels.items():
            lengths = {len(each) for each in found}
            assert lengths <= {len(METRICS[name].labels)}, name

    run(test)


def test_buckets_have_what_is_up_to_their_bound() -> None:
    latency, other = Latency(), Latency()
    for seconds in (0.00005, 0.0001, 0.00011, 10.0, 11.0):
        latency.observe(seconds)
    assert (latency.counts[0], latency.counts[1]) == (2, 1)
    assert latency.counts[-2:] == [1, 1]
    other.add(latency)
    other.add(latency)
    assert sum(other.counts) == 10
    assert other.seconds == pytest.approx(2 * latency.seconds)


def test_a_scrape_of_a_thousand_namespaces_keeps_turns_short() -> None:
    async def test(books: Books) -> None:
        for number in range(1000):
            books.open(f"m{number}")
        assert books.agent.metrics is not None
        turns: list[float] = []  # the loop's own time on a processor, however busy the machine is
        scraping = asyncio.create_task(books.agent.metrics.metrics({}))
        while not scraping.done():
            begun = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - begun)
        assert scraping.result().body.count(b"kvtier_sessions{") == 256 + 1
        turns.sort()
        assert len(turns) > 50
        assert turns[-len(turns) // 20] < 0.002, turns[-20:]
        assert turns[-1] < 0.1

    run(test, books(metrics={"max_namespaces": 256}, limits={"max_sessions": 2000}))
