"""A hundred thousand changes under load: watchers miss none, see none twice, and delay nobody."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from random import Random

import grpc
import numpy as np
import pytest

from kvtier import BlockStatus, Client, NamespaceSpec
from kvtier.client.admin import AdminClient
from kvtier.client.events import EventsClient, Follower
from kvtier.client.residents import Residents
from kvtier.client.service import call_of
from kvtier.core.block import Lane, Tier
from kvtier.errors import EventsLostError, KvtierError
from kvtier.testing import AgentProcess
from kvtier.v1 import cache_events_pb2 as pb
from tests.faults.agents import running_agent
from tests.faults.blocks import hashes_of
from tests.faults.repetitions import times
from tests.faults.waiting import wait_until

#: More than are kept, and on their way to a watcher that does not read.
CHANGES = max(20_000, times(100_000))
KEPT = 8192
#: HOST's room, in blocks, and as much again: the load waits for who is farther behind.
_FARTHEST = 4096
_SMALL_WINDOW = [("grpc.http2.bdp_probe", 0)]
BATCH = 256
SPEC = NamespaceSpec(name="model", block_bytes=(4096,))
NAME = "default/model"
_SECONDS = 60.0


class Work(threading.Thread):
    """Goes on until it is told to stop, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.stopping = threading.Event()
        self.error: BaseException | None = None


class Pace:
    """The load waits for one watcher, which is so never cut off: a new snapshot would hide what it
    missed."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._lock = threading.Lock()
        self._stored = 0

    def went_on(self, stored: int) -> None:
        """As many blocks leave HOST as are stored, once it is full."""
        with self._lock:
            self._stored += stored
            least = 2 * self._stored - _FARTHEST
        wait_until(lambda: self._follower.residents.revision >= least, _SECONDS)


class Load(Work):
    """Stores sequences; HOST has room for some, so that as many leave it."""

    def __init__(self, address: str, seed: int, pace: Pace) -> None:
        super().__init__()
        self._address, self._seed, self._pace = address, seed, pace
        self._blocks = np.zeros((BATCH, 4096), np.uint8)

    def run(self) -> None:
        try:
            with Client(self._address, timeout_seconds=10.0) as client:
                namespace = client.namespace(SPEC)
                for number in itertools.count():
                    if self.stopping.is_set():
                        return
                    hashes = hashes_of(f"{self._seed}/{number}", BATCH)
                    statuses = namespace.store(hashes, self._blocks)
                    self._pace.went_on(list(statuses).count(BlockStatus.OK))
        except BaseException as error:  # for the thread that waits
            self.error = error


class Returning(Work):
    """Watches some messages, leaves, and comes back; fails for what a replay refuses."""

    def __init__(self, address: str, seed: int, most: int) -> None:
        super().__init__()
        self._address, self._random, self._most = address, Random(seed), most
        self.residents = Residents(NAME)
        self.resumed_count = self.lost_count = 0

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self._watch(self._random.randrange(1, self._most))
        except BaseException as error:
            self.error = error

    def _watch(self, most: int) -> None:
        """EventsLostError of the agent, not of the replay, is as it should be."""
        was_complete = self.residents.is_complete
        with EventsClient(self._address) as client:
            messages = client.watch(self.residents.request())
            with closing(messages):
                try:
                    message = next(messages)
                except EventsLostError:
                    self.lost_count += 1
                    self.residents = Residents(NAME)
                    return
                self.resumed_count += was_complete
                self.residents.take(message)
                for _ in range(most):
                    try:
                        message = next(messages)
                    except EventsLostError:
                        self.lost_count += 1
                        break
                    self.residents.take(message)
                    if self.stopping.is_set():
                        break
        if not self.residents.is_complete:
            self.residents = Residents(NAME)


def watching_slowly(address: str) -> Generator[pb.WatchEventsResponse]:
    """Little is on its way while nobody reads."""
    [method] = pb.DESCRIPTOR.services_by_name["CacheEvents"].methods
    with grpc.insecure_channel(address, options=_SMALL_WINDOW) as channel:
        yield from call_of(channel, method)(Residents(NAME).request())


def read_to(messages: Iterable[pb.WatchEventsResponse], revision: int) -> None:
    """Returns when a stream has told of it."""
    for message in messages:
        if message.revision >= revision:
            return


def store(agent: AgentProcess, sequence: str, count: int) -> None:
    with Client(agent.address) as client:
        client.namespace(SPEC).store(hashes_of(sequence, count), np.zeros((count, 4096), np.uint8))


def held(address: str) -> set[tuple[Tier, Lane, bytes]]:
    """By a snapshot of its own."""
    residents = Residents(NAME)
    with EventsClient(address) as client, closing(client.watch(residents.request())) as messages:
        for message in messages:
            residents.take(message)
            if residents.is_complete:
                break
    return set(residents)


def block_count(admin: AdminClient) -> int:
    return sum(each.block_count for each in admin.get_stats(NAME).tiers)


@pytest.mark.faults
def test_no_change_is_missed_repeated_or_out_of_order() -> None:
    """The replay itself fails for all of these: see `kvtier.client.residents`."""
    with ExitStack() as stack:
        agent = stack.enter_context(running_agent("8MiB", events__kept=KEPT))
        returning = [
            Returning(agent.address, seed, most) for seed, most in enumerate((30, 30, 10**9))
        ]
        store(agent, "first", 1)
        quick = stack.enter_context(Follower(agent.address, NAME))
        admin = stack.enter_context(AdminClient(agent.admin_address, timeout_seconds=10.0))
        slow = stack.enter_context(closing(watching_slowly(agent.address)))
        next(slow)
        assert quick.wait()
        begun_at = quick.residents.revision
        pace = Pace(quick)
        loads = [Load(agent.address, seed, pace) for seed in range(2)]
        for work in (*loads, *returning):
            work.start()
        try:
            wait_until(
                lambda: (
                    quick.residents.revision > begun_at + CHANGES
                    and all(each.resumed_count + each.lost_count for each in returning[:2])
                ),
                _SECONDS,
            )
        finally:
            for work in (*loads, *returning):
                work.stopping.set()
            for work in (*loads, *returning):
                work.join()
        assert [each.error for each in loads] == [None, None]
        assert quick.snapshot_count == 1
        assert [each.error for each in returning] == [None] * 3
        wait_until(lambda: set(quick.residents) == held(agent.address), _SECONDS)
        assert len(quick.residents) == block_count(admin) > 0
        with pytest.raises(grpc.RpcError) as cut:
            read_to(slow, quick.residents.revision)
        assert cut.value.code() is grpc.StatusCode.OUT_OF_RANGE
        wait_until(lambda: admin.get_stats().events.watcher_count == 1, _SECONDS)
        counts = admin.get_stats().events
        assert counts.lost_count >= 1
        assert 0 < counts.memory_bytes <= 130 * KEPT
        assert "Traceback" not in agent.log


def lookup_agrees(agent: AgentProcess, follower: Follower, sequence: str, count: int) -> bool:
    hashes = hashes_of(sequence, count)
    with Client(agent.address) as client:
        found = client.namespace(SPEC).lookup(hashes).matched
    return found == follower.residents.prefix(hashes)


def test_a_follower_survives_a_restart_and_begins_anew() -> None:
    """Another run of the agent has another epoch, and nothing in HOST."""
    with running_agent("8MiB") as agent, Follower(agent.address, NAME) as follower:
        assert follower.wait()
        assert len(follower.residents) == 0
        assert "no namespace" in follower.reason
        store(agent, "a", 8)
        wait_until(lambda: lookup_agrees(agent, follower, "a", 8), _SECONDS)
        assert follower.residents.prefix(hashes_of("a", 8)) == 8
        before = follower.residents.epoch
        agent.kill()
        wait_until(lambda: not follower.is_current, _SECONDS)
        assert len(follower.residents) == 8
        agent.start()
        wait_until(lambda: follower.is_current and not len(follower.residents), _SECONDS)
        store(agent, "b", 8)
        wait_until(lambda: follower.residents.prefix(hashes_of("b", 8)) == 8, _SECONDS)
        assert follower.residents.epoch not in (0, before)
        assert follower.residents.prefix(hashes_of("a", 8)) == 0


def test_a_revision_of_another_run_is_answered_like_one_that_is_gone() -> None:
    with running_agent("8MiB") as agent:
        residents = Residents(NAME)
        for run in range(2):
            store(agent, "a", 8)
            with (
                EventsClient(agent.address) as client,
                closing(client.watch(residents.request())) as messages,
            ):
                if run == 0:
                    residents.take(next(messages))
                    agent.stop()
                    agent.start()
                else:
                    with pytest.raises(EventsLostError, match="epoch"):
                        next(messages)


def test_watchers_beyond_the_limit_are_refused_and_streams_of_blocks_are_not() -> None:
    with running_agent("8MiB", events__max_watchers=2) as agent, ExitStack() as stack:
        store(agent, "a", 1)
        for _ in range(2):
            assert stack.enter_context(Follower(agent.admin_address, NAME)).wait()
        third = stack.enter_context(Follower(agent.address, NAME))
        wait_until(lambda: "events.max_watchers" in third.reason, _SECONDS)
        assert not third.is_current


def test_only_the_admin_socket_shows_every_tenant() -> None:
    with running_agent("8MiB", streams__tenants="[team]") as agent:
        store(agent, "a", 1)
        with Follower(agent.admin_address, NAME) as operator:
            assert operator.wait()
        with (
            EventsClient(agent.address) as router,
            pytest.raises(KvtierError, match="may not be watched"),
        ):
            next(router.watch(Residents(NAME).request()))
