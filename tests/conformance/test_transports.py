"""Shared memory, streams and the asynchronous client: the same verbs, the same results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvtier import BlockStatus, Match, NamespaceSpec, Tier
from kvtier.client.admin import AdminClient
from kvtier.client.requests import Place
from kvtier.errors import AccessDeniedError, InvalidRequestError
from kvtier.memory import ByteArray
from kvtier.testing import AgentProcess, is_payload_for, payload_for
from tests.conformance.transports import NAMES, Verbs, Worker, worker
from tests.faults.agents import promised_bytes, running_agent, wait_until_free
from tests.faults.blocks import KIB, MIB, hashes_of, payloads, spec_of

OK, ABSENT, PRESENT = BlockStatus.OK, BlockStatus.ABSENT, BlockStatus.PRESENT


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    with running_agent("512MiB") as running:
        yield running


@pytest.fixture(params=NAMES)
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def here(agent: AgentProcess, transport: str) -> Iterator[Worker]:
    with worker(transport, agent.address) as each:
        yield each


def read(verbs: Verbs, spec: NamespaceSpec, hashes: Sequence[bytes], **named: Any) -> list[int]:
    """Loads and judges every byte of what is OK."""
    group = named.get("place", Place()).group
    size = spec.block_bytes[group]
    out = np.zeros((len(hashes), size), np.uint8)
    statuses: list[int] = verbs.load_into(hashes, out, **named)
    for status, key, row in zip(statuses, hashes, out, strict=True):
        assert status != OK or is_payload_for(row, key, size, namespace=spec.label)
    return statuses


@pytest.mark.parametrize(
    ("block_bytes", "count"),
    [(1, 5), (1000, 3000), (4 * KIB, 2500), (992 * KIB, 4), (2 * MIB, 20), (8 * MIB + 1, 5)],
)
def test_what_is_stored_is_loaded(
    here: Worker, transport: str, block_bytes: int, count: int
) -> None:
    spec = spec_of(f"sizes-{transport}", block_bytes)
    verbs, hashes = here.namespace(spec), hashes_of("sizes", count)
    blocks = payloads(spec, hashes)
    assert read(verbs, spec, hashes) == [ABSENT] * count
    assert verbs.store(hashes[: count // 2], blocks[: count // 2]) == [OK] * (count // 2)
    assert verbs.lookup(hashes).matched == count // 2
    assert read(verbs, spec, hashes) == [OK] * (count // 2) + [ABSENT] * (count - count // 2)
    expected = [PRESENT] * (count // 2) + [OK] * (count - count // 2)
    assert verbs.store(hashes, blocks) == expected
    assert read(verbs, spec, hashes) == [OK] * count
    found = verbs.lookup(hashes, match=Match.PRESENCE)
    assert found.present == (True,) * count
    assert found.runs == ((Tier.HOST, count),)


@pytest.mark.parametrize("other", NAMES)
def test_one_transport_loads_what_another_stored(
    agent: AgentProcess, here: Worker, transport: str, other: str
) -> None:
    spec, hashes = spec_of("shared", 300 * KIB), hashes_of(f"{transport}/{other}", 9)
    with worker(other, agent.address) as there:
        assert there.namespace(spec).store(hashes, payloads(spec, hashes)) == [OK] * 9
    verbs = here.namespace(spec)
    assert read(verbs, spec, hashes) == [OK] * 9
    assert verbs.store(hashes, payloads(spec, hashes)) == [PRESENT] * 9


def test_groups_and_shards_are_apart(here: Worker, transport: str) -> None:
    spec = NamespaceSpec(name=f"hybrid-{transport}", block_bytes=(40 * KIB, 3 * MIB), shards=2)
    verbs, hashes = here.namespace(spec), hashes_of("hybrid", 5)
    for group, size in enumerate(spec.block_bytes):
        blocks = [payload_for(each, size, namespace=spec.label) for each in hashes]
        place = Place(group=group, shard=1)
        assert verbs.store(hashes, blocks, place=place) == [OK] * 5
        assert read(verbs, spec, hashes, place=place) == [OK] * 5
        assert read(verbs, spec, hashes, place=Place(group=group)) == [ABSENT] * 5
    assert verbs.lookup(hashes, place=Place(group=1), shards=[0, 1]).matched == 0
    assert verbs.lookup(hashes, place=Place(group=1, shard=1)).matched == 5


def test_a_gap_and_a_sequence_that_goes_on(here: Worker, transport: str) -> None:
    windowed = {"group.0": "window of 64"}
    spec = replace(spec_of(f"gaps-{transport}", 600 * KIB), extra=windowed)
    verbs, hashes = here.namespace(spec), hashes_of("gaps", 8)
    blocks = payloads(spec, hashes)
    assert verbs.store(hashes[:2], blocks[:2]) == [OK] * 2
    later = Place(parent=hashes[4], position=5)
    assert verbs.store(hashes[5:], blocks[5:], place=later) == [OK] * 3
    assert read(verbs, spec, hashes) == [OK] * 2 + [ABSENT] * 3 + [OK] * 3
    assert read(verbs, spec, hashes[5:], place=later) == [OK] * 3
    assert verbs.lookup(hashes).matched == 2
    assert verbs.lookup(hashes, match=Match.PRESENCE).present == (
        *(True, True, False, False, False, True, True, True),
    )
    assert verbs.store(hashes, blocks) == [PRESENT] * 2 + [OK] * 3 + [PRESENT] * 3
    assert read(verbs, spec, hashes) == [OK] * 8


def test_holds_touches_prefetches_and_renewals(
    agent: AgentProcess, here: Worker, transport: str
) -> None:
    spec = spec_of(f"verbs-{transport}")
    verbs, hashes = here.namespace(spec), hashes_of("verbs", 6)
    assert verbs.store(hashes, payloads(spec, hashes)) == [OK] * 6
    with AdminClient(agent.admin_address) as admin:
        wait_until_free(admin, 5)
        found = verbs.lookup(hashes, hold_seconds=5)
        assert found.hold_id
        assert promised_bytes(admin) == 6 * spec.block_bytes[0]
        assert read(verbs, spec, hashes, hold_id=found.hold_id) == [OK] * 6
        verbs.lookup(hashes)
        wait_until_free(admin, 5)
    assert verbs.prefetch(hashes) == 6
    verbs.touch(hashes)
    assert verbs.renew() == 0
    assert verbs.lookup([]).matched == 0
    assert verbs.load_into([], np.zeros((0, spec.block_bytes[0]), np.uint8)) == []
    assert verbs.store([], np.zeros((0, spec.block_bytes[0]), np.uint8)) == []


def test_arrays_of_any_type_and_tensors(here: Worker, transport: str) -> None:
    spec = spec_of(f"arrays-{transport}", 1200)
    verbs, hashes = here.namespace(spec), hashes_of("arrays", 4)
    whole = np.concatenate(payloads(spec, hashes)).reshape(4, 1200).view(np.float32)
    assert verbs.store(hashes, whole) == [OK] * 4
    rows: list[ByteArray] = [np.zeros(1200, np.uint8) for _ in hashes]
    assert verbs.load_into(hashes, rows) == [OK] * 4
    assert np.array_equal(np.stack(rows), whole.view(np.uint8))
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, 600, dtype=torch.bfloat16)
    assert verbs.load_into(hashes, tensor) == [OK] * 4
    assert np.array_equal(tensor.view(torch.uint8).numpy(), whole.view(np.uint8))


@pytest.mark.parametrize("transport", ["memory", "stream"])
def test_loaded_and_reserved_blocks(here: Worker, transport: str) -> None:
    spec = spec_of(f"places-{transport}", 700 * KIB)
    verbs, hashes = here.namespace(spec), hashes_of("places", 60)
    blocks = payloads(spec, hashes)
    assert verbs.store(hashes[:2], blocks[:2]) == [OK] * 2
    with verbs.reserve(hashes) as reservation:
        assert reservation.statuses == [PRESENT] * 2 + [OK] * 58
        assert [cell is None for cell in reservation.cells] == [True] * 2 + [False] * 58
        reservation.write(blocks)
        assert verbs.lookup(hashes).matched == 2
        assert reservation.commit() == [PRESENT] * 2 + [OK] * 58
    with verbs.load([*hashes, b"x" * 32]) as loaded:
        assert loaded.count == 60
        assert loaded.statuses == [OK] * 60 + [ABSENT]
        assert loaded.views[60] is None
        assert all(map(np.array_equal, loaded.views, blocks))
        joined = np.concatenate([cells for _, _, cells in loaded.runs()])
        assert np.array_equal(joined, np.stack(blocks))
        assert loaded.valid()
    others = hashes_of("given back", 3)
    with verbs.reserve(others) as reservation:
        reservation.write(payloads(spec, others))
    assert reservation.statuses == [BlockStatus.EXPIRED] * 3
    assert verbs.lookup(others).matched == 0
    with verbs.reserve(others) as first, verbs.reserve(others) as second:
        for each in (first, second):
            each.write(payloads(spec, others))
        assert first.commit() == [OK] * 3
        assert second.commit() == [PRESENT] * 3


def test_what_has_no_room_is_refused(transport: str) -> None:
    with running_agent("2MiB") as small, worker(transport, small.address) as each:
        spec, hashes = spec_of("large", MIB), hashes_of("large", 4)
        statuses = each.namespace(spec).store(hashes, payloads(spec, hashes))
        assert set(statuses) == {OK, BlockStatus.REFUSED}
        assert sorted(statuses) == statuses  # the beginning is stored, not what follows
        verbs = each.namespace(spec)
        assert read(verbs, spec, hashes) == [OK if s == OK else ABSENT for s in statuses]


def test_bad_requests_name_the_field(here: Worker, transport: str) -> None:
    verbs, hashes = here.namespace(spec_of(f"bad-{transport}", 100)), hashes_of("bad", 2)
    for wrong, message in (
        (np.zeros((2, 99), np.uint8), "198 bytes"),
        (np.zeros((100, 4), np.uint8).T, "contiguous"),
    ):
        for verb in (verbs.store, verbs.load_into):
            with pytest.raises(InvalidRequestError, match=message):
                verb(hashes, wrong)
    right = np.zeros((2, 100), np.uint8)
    for verb in (verbs.store, verbs.load_into):
        with pytest.raises(InvalidRequestError, match="group"):
            verb(hashes, right, place=Place(group=1))
        with pytest.raises(InvalidRequestError, match="shard"):
            verb(hashes, right, place=Place(shard=1))
    with pytest.raises(InvalidRequestError, match="parent_hash"):
        verbs.store(hashes, right, place=Place(position=3))
    if transport != "async":
        for place_verb in (verbs.load, verbs.reserve):
            with pytest.raises(InvalidRequestError, match="group"):
                place_verb(hashes, place=Place(group=1))
    right.flags.writeable = False
    with pytest.raises(InvalidRequestError, match="read-only"):
        verbs.load_into(hashes, right)


def test_a_tenant_that_is_not_allowed_is_refused(transport: str) -> None:
    rules = {"workers": "[{uid: 0, tenants: [ours]}]", "streams__tenants": "[ours]"}
    with running_agent("16MiB", **rules) as small, worker(transport, small.address) as each:
        hashes = hashes_of("secret", 1)
        assert each.namespace(spec_of(tenant="ours")).lookup(hashes).matched == 0
        with pytest.raises(AccessDeniedError, match="'theirs'"):
            each.namespace(spec_of(tenant="theirs")).lookup(hashes)
