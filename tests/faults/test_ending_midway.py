"""A session or lease that ends in the middle of a call leaves no slot behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest

from kvtier import Client, Namespace
from kvtier.client.admin import AdminClient
from kvtier.errors import KvtierError
from kvtier.testing import AgentProcess
from kvtier.testing.worker_process import WorkerProcess
from kvtier.v1 import block_cache_pb2 as pb
from kvtier.v1 import block_pb2
from tests.faults import scripts
from tests.faults.agents import cpu_seconds, promised_bytes, running_agent, wait_until_free
from tests.faults.blocks import hashes_of, spec_of, store
from tests.faults.raw_worker import RawWorker, keys_message
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

pytestmark = pytest.mark.faults

_BLOCK_BYTES = 4096
_COUNT = 8000
_ALL = pb.LoadBlocksRequest.ALL


@pytest.fixture
def agent() -> Iterator[AgentProcess]:
    with running_agent("128MiB", leases__max_share=1.0, leases__default_seconds=0.5) as running:
        yield running


@pytest.fixture
def admin(agent: AgentProcess) -> Iterator[AdminClient]:
    with AdminClient(agent.admin_address) as client:
        yield client


def _large(client: Client) -> Namespace:
    namespace = client.namespace(spec_of("large", _BLOCK_BYTES))
    assert store(namespace, "large", _COUNT) == _COUNT
    return namespace


def test_a_lease_that_ends_before_its_load_is_answered(
    agent: AgentProcess, admin: AdminClient
) -> None:
    with Client(agent.address, timeout_seconds=5) as client:
        namespace = _large(client)
        for _ in range(times(30)):
            namespace.load(hashes_of("large", _COUNT), ttl_seconds=0.002).release()
    wait_until_free(admin, 3)


def test_a_hold_that_ends_before_its_lookup_is_answered(
    agent: AgentProcess, admin: AdminClient
) -> None:
    with Client(agent.address, timeout_seconds=5) as client:
        namespace = _large(client)
        for _ in range(times(30)):
            namespace.lookup(hashes_of("large", _COUNT), hold_seconds=0.001)
    wait_until_free(admin, 3)


def test_a_connection_that_ends_during_a_load(agent: AgentProcess, admin: AdminClient) -> None:
    with Client(agent.address, timeout_seconds=5) as client:
        namespace = _large(client)
    request = pb.LoadBlocksRequest(keys=[keys_message(hashes_of("large", _COUNT))], wait=_ALL)
    for _ in range(times(30)):
        with RawWorker(agent.directory) as worker:
            session = worker.open(namespace.spec)
            load = worker.start("LoadBlocks", request, session)
            wait_until(lambda load=load: promised_bytes(admin) > 0 or load.done(), 2, 0)  # type: ignore[misc]
            worker.detach()
            with suppress(grpc.RpcError):
                load.result()
    wait_until_free(admin, 3)


def test_a_worker_that_hangs_up_during_its_reservation_and_then_dies(
    agent: AgentProcess, admin: AdminClient
) -> None:
    """Also, the agent is not kept busy by it."""
    for turn in range(times(30)):
        with WorkerProcess(
            scripts.hang_up_while_reserving, str(agent.directory), f"gone/{turn}", _COUNT
        ) as worker:
            worker.hear()
            worker.kill()
    wait_until_free(admin, 2)
    before = cpu_seconds(agent.pid)
    idle = admin.watch_stats(interval_seconds=0.5)
    for _ in range(3):
        next(idle)
    idle.close()
    assert cpu_seconds(agent.pid) - before < 0.3


def test_a_reservation_given_back_during_its_commit(
    agent: AgentProcess, admin: AdminClient
) -> None:
    spec = spec_of("large", _BLOCK_BYTES)
    with RawWorker(agent.directory) as worker:
        session = worker.open(spec)
        for turn in range(times(30)):
            hashes = hashes_of(f"released/{turn}", 2000)
            slots = _commit_and_release(worker, session, hashes)
            request = pb.ReserveBlocksRequest(keys=[keys_message(hashes_of(f"new/{turn}", 2000))])
            reserved = worker.call("ReserveBlocks", request, session)
            assert not slots & _slots(reserved), "slots of blocks were handed out for writing"
            release = pb.ReleaseLeasesRequest(lease_ids=[reserved.reservation.lease_id])
            worker.call("ReleaseLeases", release, session)
    wait_until_free(admin, 2)


def _commit_and_release(worker: RawWorker, session: bytes, hashes: list[bytes]) -> set[object]:
    """The slots of what was committed in the end."""
    keys = [keys_message(hashes)]
    reserved = worker.call("ReserveBlocks", pb.ReserveBlocksRequest(keys=keys), session)
    lease_id = reserved.reservation.lease_id
    commit = worker.start("CommitBlocks", pb.CommitBlocksRequest(reservation_id=lease_id), session)
    release = pb.ReleaseLeasesRequest(lease_ids=[lease_id])
    worker.call("ReleaseLeases", release, session)
    assert set(commit.result().status) <= {block_pb2.OK, block_pb2.EXPIRED}
    loaded = worker.call("LoadBlocks", pb.LoadBlocksRequest(keys=keys, wait=_ALL), session)
    worker.call(
        "ReleaseLeases", pb.ReleaseLeasesRequest(lease_ids=[loaded.lease.lease_id]), session
    )
    return _slots(loaded)


def _slots(answer: pb.LoadBlocksResponse | pb.ReserveBlocksResponse) -> set[object]:
    places = zip(answer.status, answer.slots.extent, answer.slots.slot, strict=True)
    return {(extent, slot) for status, extent, slot in places if status == block_pb2.OK}


@pytest.mark.parametrize("verb", ["reserve", "load"])
def test_what_a_stopped_agent_granted_to_nobody_comes_back(
    agent: AgentProcess, admin: AdminClient, verb: str
) -> None:
    """The answer of a call that was given up names a lease that its worker never learns of."""
    with Client(agent.address, timeout_seconds=0.3) as client:
        namespace = client.namespace(spec_of())
        assert store(namespace, "stored", 4) == 4
        for turn in range(times(10)):
            agent.pause()
            with pytest.raises(KvtierError):
                getattr(namespace, verb)(hashes_of("stored" if verb == "load" else str(turn), 4))
            agent.resume()
            wait_until(lambda: client.is_connected, 5)
        namespace.load(hashes_of("none", 1)).release()
        wait_until_free(admin, 3)


def test_a_release_whose_call_was_lost_is_sent_again(
    agent: AgentProcess, admin: AdminClient
) -> None:
    with Client(agent.address, timeout_seconds=0.3) as client:
        namespace = client.namespace(spec_of())
        namespace.reserve(hashes_of("unwritten", 8)).release()
        agent.pause()
        with pytest.raises(KvtierError):
            namespace.load(hashes_of("any", 4))
        agent.resume()
        wait_until(lambda: client.is_connected, 5)
        namespace.load(hashes_of("any", 4)).release()
        wait_until_free(admin, 3)


def test_a_renewal_of_very_many_leases_is_answered(agent: AgentProcess) -> None:
    with Client(agent.address, timeout_seconds=5) as client:
        namespace = client.namespace(spec_of("large", _BLOCK_BYTES))
        assert store(namespace, "many", 8) == 8
        leases = [namespace.load(hashes_of("many", 1), ttl_seconds=20) for _ in range(3000)]
        assert namespace.renew(20) == 3000
        assert all(each.count == 1 for each in leases)


def test_one_lookup_of_very_many_shards_does_not_stop_the_others(
    agent: AgentProcess, admin: AdminClient
) -> None:
    with RawWorker(agent.directory) as worker:
        request = block_pb2.NamespaceSpec(name="wide", block_bytes=[4096], shards=65536)
        opened = worker.call(
            "OpenSession", pb.OpenSessionRequest(namespace=request, attach_token=worker.token)
        )
        keys = [keys_message(hashes_of("wide", 8192))]
        lookup = pb.LookupPrefixRequest(
            keys=keys, shards=range(65536), match=pb.LookupPrefixRequest.PRESENCE
        )
        call = worker.start("LookupPrefix", lookup, opened.session_token, 2)
        for _ in range(20):
            assert admin.get_stats().tiers
        call.cancel()
