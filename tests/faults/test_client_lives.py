"""Clients in unusual lives: forked, doubled, closed early, used by many threads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from kvtier import Client, Namespace
from kvtier.client.admin import AdminClient
from kvtier.client.attachment import Attachment
from kvtier.errors import AgentUnavailableError, DeadlineExceededError
from kvtier.testing import AgentProcess
from kvtier.testing.worker_process import WorkerProcess
from kvtier.v1 import block_cache_pb2 as pb
from tests.faults import scripts
from tests.faults.agents import (
    descriptor_count,
    promised_bytes,
    running_agent,
    wait_until_free,
)
from tests.faults.blocks import Verdict, hashes_of, is_right, judge, payloads, spec_of, store
from tests.faults.raw_worker import RawWorker, keys_message
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults


@pytest.fixture
def agent() -> Iterator[AgentProcess]:
    with running_agent("16MiB", leases__default_seconds=1) as running:
        yield running


def test_a_forked_child_cannot_use_the_client_and_does_no_harm(agent: AgentProcess) -> None:
    with WorkerProcess(scripts.use_a_client_after_fork, agent.address) as worker:
        status, verdict = worker.hear()
        assert status == 0
        assert Verdict(**verdict) == Verdict(right=4)
        assert worker.wait() == 0


def test_closing_a_client_ends_its_sessions_though_a_forked_child_lives(
    agent: AgentProcess,
) -> None:
    with (
        AdminClient(agent.admin_address) as admin,
        WorkerProcess(scripts.close_while_a_child_lives, agent.address) as worker,
    ):
        worker.hear()
        wait_until(lambda: not admin.list_sessions(), 1)


def test_two_clients_of_one_process_do_not_disturb_each_other(agent: AgentProcess) -> None:
    with Client(agent.address) as first:
        with Client(agent.address) as second:
            assert store(second.namespace(spec_of()), "shared", 4) == 4
            assert judge(first.namespace(spec_of()), hashes_of("shared", 4)) == Verdict(right=4)
        assert judge(first.namespace(spec_of()), hashes_of("shared", 4)) == Verdict(right=4)


def test_views_outlive_their_client_and_tell_when_they_are_overwritten(
    agent: AgentProcess,
) -> None:
    spec, hashes = spec_of(), hashes_of("viewed", 8)
    client = Client(agent.address)
    namespace = client.namespace(spec)
    assert store(namespace, "viewed", 8) == 8
    loaded = namespace.load(hashes)
    client.close()
    for block_hash, view in zip(hashes, loaded.views, strict=True):
        assert view is not None
        assert is_right(spec, block_hash, view)
    assert loaded.valid()
    with pytest.raises(AgentUnavailableError):
        namespace.lookup(hashes)
    with Client(agent.address) as other:
        for index in range(32):
            store(other.namespace(spec), f"over/{index}", 16)
    assert not loaded.valid()
    loaded.release()


def test_a_reservation_open_at_the_close_of_its_client_stores_nothing(
    agent: AgentProcess,
) -> None:
    with AdminClient(agent.admin_address) as admin:
        client = Client(agent.address)
        namespace = client.namespace(spec_of())
        hashes = hashes_of("late", 8)
        reservation = namespace.reserve(hashes)
        client.close()
        reservation.write(payloads(namespace.spec, hashes))
        with pytest.raises(AgentUnavailableError):
            reservation.commit()
        with Client(agent.address) as other:
            assert other.namespace(spec_of()).lookup(hashes).matched == 0
        assert promised_bytes(admin) > 0


def test_many_threads_share_a_client(agent: AgentProcess) -> None:
    failures: list[BaseException] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Client(agent.address, timeout_seconds=5) as client:
            namespace = client.namespace(spec_of(block_bytes=4096))
            assert store(namespace, "shared", 4) == 4
            threads = [
                threading.Thread(target=_load_often, args=(namespace, failures)) for _ in range(4)
            ]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    with AdminClient(agent.admin_address) as admin:
        wait_until_free(admin, 2)


def _load_often(namespace: Namespace, failures: list[BaseException]) -> None:
    try:
        for _ in range(times(5000)):
            with namespace.load(hashes_of("shared", 4)) as loaded:
                assert loaded.count == 4
    except BaseException as error:
        failures.append(error)


def test_extents_that_come_too_late_leave_no_descriptor(agent: AgentProcess) -> None:
    with RawWorker(agent.directory) as other, Client(agent.address) as client:
        namespace = client.namespace(spec_of())
        assert store(namespace, "stored", 4) == 4
        path = str(agent.directory / "attach.sock")
        attachment = Attachment(path, b"late client id..", 0.2)
        other.token = attachment.token
        session = other.open(namespace.spec)
        before = descriptor_count(os.getpid())
        agent.pause()
        with pytest.raises(DeadlineExceededError):
            attachment.get(session, [1], 0.2)
        agent.resume()
        other.call("TouchBlocks", pb.TouchBlocksRequest(keys=keys_message([b"x" * 32])), session)
        with suppress(AgentUnavailableError):
            attachment.poll()
        assert descriptor_count(os.getpid()) <= before
        attachment.close()
