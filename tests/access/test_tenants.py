"""Tenants with equal tokens share nothing, and see nothing of each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from kvtier import Client, NamespaceSpec
from kvtier.access.role import Role
from kvtier.client.admin import AdminClient
from kvtier.errors import AccessDeniedError, InvalidRequestError, NotFoundError
from kvtier.v1 import block_pb2
from tests.access.agents import Callers, RemoteAgent, make_certificates, remote_agent
from tests.faults.blocks import Verdict, hashes_of, judge, payloads, spec_of

TENANTS = [f"tenant-{number:02d}" for number in range(64)]
HASHES = hashes_of("what all of them ask", 6)


@pytest.fixture(scope="module")
def callers() -> Callers:
    made = Callers()
    for tenant in TENANTS:
        made.add(tenant, Role.WORKER, f"{tenant}/*")
    for tenant in TENANTS[:2]:
        made.add(f"operator-{tenant}", Role.OPERATOR, f"{tenant}/*")
    return made


@pytest.fixture(scope="module")
def agent(callers: Callers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteAgent]:
    directory = tmp_path_factory.mktemp("tenants")
    make_certificates(directory / "certificates", "worker=DNS:none.example")
    settings = {"namespaces": '{"*": {host: {limit: 90%}}}', "tiers.disk.capacity": "64MiB"}
    settings["tiers.disk.paths"] = f"[{directory / 'disk'}]"
    with remote_agent(directory, callers, directory / "certificates", settings) as running:
        yield running


def spec(tenant: str) -> NamespaceSpec:
    return spec_of("chat", 4096, tenant=tenant)


def client_of(agent: RemoteAgent, callers: Callers, tenant: str) -> Client:
    token, tls = callers.tokens[tenant], agent.tls("worker")
    return Client(agent.address(), token=token, tls=tls, timeout_seconds=20)


def operator_of(agent: RemoteAgent, callers: Callers, tenant: str) -> AdminClient:
    token = callers.tokens[f"operator-{tenant}"]
    return AdminClient(agent.endpoint("worker", token, "admin_address"), timeout_seconds=20)


def test_64_tenants_with_equal_tokens_hit_their_own_blocks_only(
    agent: RemoteAgent, callers: Callers
) -> None:
    with ExitStack() as stack:
        namespaces = [
            stack.enter_context(client_of(agent, callers, tenant)).namespace(spec(tenant))
            for tenant in TENANTS
        ]
        hits, right = [], Verdict()
        for namespace in namespaces:
            hits.append(namespace.lookup(HASHES).matched)
            assert judge(namespace, HASHES) == Verdict()
            namespace.store(HASHES, np.stack(payloads(namespace.spec, HASHES)))
        for namespace in namespaces:
            assert namespace.lookup(HASHES).matched == len(HASHES)
            right += judge(namespace, HASHES)
    assert hits == [0] * len(TENANTS)
    assert right == Verdict(right=len(TENANTS) * len(HASHES))


def all_that_is_seen(admin: AdminClient) -> dict[str, Any]:
    """Without what changes with time."""
    stats = admin.get_stats()
    stats.ClearField("sample_time")
    stats.ClearField("uptime")
    pins = admin.list_pins()
    for pin in pins:
        pin.ClearField("expire_time")
    return {
        "stats": str(stats),
        "namespaces": [str(each) for each in admin.list_namespaces()],
        "sessions": [str(each) for each in admin.list_sessions()],
        "pins": [str(each) for each in pins],
    }


def test_what_one_tenant_does_no_other_sees(agent: RemoteAgent, callers: Callers) -> None:
    mine, theirs = TENANTS[:2]
    with (
        client_of(agent, callers, mine) as my_client,
        client_of(agent, callers, theirs) as their_client,
        operator_of(agent, callers, mine) as me,
        operator_of(agent, callers, theirs) as them,
        AdminClient(agent.process.admin_address) as local,
    ):
        my_namespace, their_namespace = (
            my_client.namespace(spec(mine)),
            their_client.namespace(spec(theirs)),
        )
        my_namespace.store(HASHES, np.stack(payloads(my_namespace.spec, HASHES)))
        my_pin = me.create_pin(f"{mine}/chat", HASHES, 600)
        local.flush()
        before = all_that_is_seen(me)
        assert len(before["namespaces"]) == len(before["pins"]) == 1
        assert f'tenant: "{mine}"' in before["namespaces"][0]

        more = hashes_of("what one of them asks", 64)
        their_namespace.store(more, np.stack(payloads(their_namespace.spec, more)))
        judge(their_namespace, more)
        their_pin = them.create_pin(f"{theirs}/chat", more[:4], 600)
        them.evict_blocks(f"{theirs}/chat", more[32:33])
        local.flush()
        assert all_that_is_seen(me) == before
        assert theirs not in str(before)

        with pytest.raises(NotFoundError, match="no pin"):
            me.delete_pin(their_pin.pin_id)
        me.delete_pin(my_pin.pin_id)
        assert [pin.pin_id for pin in them.list_pins()] == [their_pin.pin_id]

        me.evict_blocks(f"{mine}/chat")
        me.invalidate(f"{mine}/chat")
        assert my_namespace.lookup(HASHES).matched == 0
        assert their_namespace.lookup(more).matched == 32
        assert judge(their_namespace, more[:32]) == Verdict(right=32)


@pytest.mark.parametrize("label", ["tenant-01/chat", "tenant-01/nothing", "tenant-01/chat@00", "x"])
def test_names_of_others_are_refused_whether_they_exist_or_not(
    agent: RemoteAgent, callers: Callers, label: str
) -> None:
    with operator_of(agent, callers, TENANTS[0]) as me:
        for call in (
            lambda: me.get_stats(label),
            lambda: me.list_pins(label),
            lambda: me.evict_blocks(label),
            lambda: me.explain_blocks(label, HASHES),
            lambda: me.record_requests(label),
            lambda: me.warm(label, HASHES),
        ):
            with pytest.raises(AccessDeniedError, match="not for namespace"):
                call()
        with pytest.raises(InvalidRequestError, match="namespace is empty"):
            me.evict_blocks("")


def test_a_recording_has_requests_of_ones_own(agent: RemoteAgent, callers: Callers) -> None:
    mine, theirs = TENANTS[:2]
    with (
        client_of(agent, callers, mine) as my_client,
        client_of(agent, callers, theirs) as their_client,
        operator_of(agent, callers, mine) as me,
    ):
        my_namespace, their_namespace = (
            my_client.namespace(spec(mine)),
            their_client.namespace(spec(theirs)),
        )
        recording = me.record_requests()
        for _ in range(3):
            their_namespace.lookup(HASHES)
            my_namespace.lookup(HASHES)
        heard = [next(recording).namespace for _ in range(3)]
        recording.close()
    assert {each.partition("/")[0] for each in heard} == {mine}


def test_an_explanation_names_no_namespace_of_others(
    callers: Callers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What made room for another tenant's blocks is told, but not for whose."""
    mine, theirs = TENANTS[:2]
    directory = tmp_path_factory.mktemp("full")
    settings = {"tiers.host.capacity": "2MiB", "tiers.host.policy": "lru"}
    with (
        remote_agent(directory, callers, None, settings) as agent,
        client_of(agent, callers, mine) as my_client,
        client_of(agent, callers, theirs) as their_client,
        operator_of(agent, callers, mine) as me,
        AdminClient(agent.process.admin_address) as local,
    ):
        my_client.namespace(spec(mine)).store(HASHES, np.stack(payloads(spec(mine), HASHES)))
        large = spec_of("large", 64 << 10, tenant=theirs)
        their_namespace = their_client.namespace(large)
        for round_number in range(40):
            more = hashes_of(f"pressure {round_number}", 8)
            their_namespace.store(more, np.stack(payloads(large, more)))
            told = local.explain_blocks(f"{mine}/chat", HASHES).explanations
            if theirs in str(told):
                break
        else:
            pytest.fail("nothing made way for the other tenant")
        answer = me.explain_blocks(f"{mine}/chat", HASHES)
        assert theirs not in str(answer)
        assert "a namespace of others" in str(answer)
        assert not answer.HasField("history")
        assert [tier.tier for tier in me.get_stats().tiers] == [block_pb2.TIER_HOST]
