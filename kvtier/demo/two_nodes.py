"""The story of two nodes: an agent on each, and CLUSTER between them until its server is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from kvtier.client.admin import AdminClient
from kvtier.core.block import Tier
from kvtier.demo.agent import comes_true, make_agent, restart, stats_of, tier_of
from kvtier.demo.exchange import Task
from kvtier.demo.progress import Progress
from kvtier.demo.report import Account, state_of, tier_line
from kvtier.demo.role import Role
from kvtier.demo.server import Server, address_of, existing_server, own_server
from kvtier.errors import AgentUnavailableError
from kvtier.testing import AgentProcess
from kvtier.tiers.cluster.url import Deployment
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import TierStats

_ONE, _TWO = "node 1", "node 2"
_FIRST = Role("worker 1", "reads a text and stores its KV", "", _ONE)
_SECOND = Role("worker 2", "is asked the same and finds it in CLUSTER", "CLUSTER", _TWO)
_THIRD = Role("worker 3", "goes on with a longer conversation, from HOST", "HOST", _TWO)
_FOURTH = Role("worker 4", "is asked as worker 1 was and finds it on DISK", "DISK", _ONE)

_MEET_SECONDS = 15.0
_NOTICE_SECONDS = 15.0

Agents = Mapping[str, AgentProcess]


class TwoNodes:
    """CLUSTER is shared by nodes, and each goes on without it.

    At a `url` there is a server already, which is not stopped. Raises ConfigError if it is wrong.
    """

    def __init__(self, url: str | None) -> None:
        is_own = url is None or address_of(url).deployment is Deployment.EMBEDDED
        self._url = None if is_own else url

    def play(self, task: Task, directory: Path, progress: Progress) -> Account:
        progress.step("starting a Valkey" if self._url is None else "asking the server")
        with self._server(directory / "valkey") as server:
            progress.step("starting an agent on each of two nodes")
            with (
                make_agent(directory / "1", server.settings("node-1")) as one,
                make_agent(directory / "2", server.settings("node-2")) as two,
            ):
                agents = {_ONE: one, _TWO: two}
                _meet(agents)
                progress.say(
                    "two nodes, both on this machine, each with HOST and DISK of its own; "
                    f"CLUSTER, which they share, is {server.label}"
                )
                return _play(task, agents, server, progress)

    def _server(self, directory: Path) -> AbstractContextManager[Server]:
        return own_server(directory) if self._url is None else existing_server(self._url)


def _play(task: Task, agents: Agents, server: Server, progress: Progress) -> Account:
    one, two = agents[_ONE], agents[_TWO]
    first = _FIRST.play(task, one, progress)
    _write_to_cluster(one, progress)
    second = _SECOND.play(task, two, progress)
    if server.stop is not None:
        _stop_server(server.stop, agents, progress)
    third = _THIRD.play(task, two, progress, first.outcome.answer)
    restart(one, progress, f"the agent of {_ONE}")
    fourth = _FOURTH.play(task, one, progress)
    lines = [f"The agent of {_ONE} has counted since its second start:", *_counts(one)]
    lines += [f"The agent of {_TWO} has counted:", *_counts(two)]
    return Account([first, second, third, fourth], lines)


def _counts(agent: AgentProcess) -> list[str]:
    return [tier_line(tier) for tier in stats_of(agent).tiers]


def _meet(agents: Agents) -> None:
    """Returns when each agent sees all of them in CLUSTER."""
    for name, agent in agents.items():
        with AdminClient(agent.admin_address) as admin:
            if not comes_true(partial(_sees, admin, len(agents)), _MEET_SECONDS):
                state = state_of(_cluster_of(agent))
                raise RuntimeError(f"{name} does not meet the other in CLUSTER, which is {state}")


def _sees(admin: AdminClient, count: int) -> bool:
    try:
        return len(admin.nodes()) == count
    except AgentUnavailableError:
        return False


def _write_to_cluster(agent: AgentProcess, progress: Progress) -> None:
    """What was stored; it goes there in the background, soon, but the next worker is as soon."""
    progress.step(f"{_ONE} writes to CLUSTER what has not got there yet")
    with AdminClient(agent.admin_address) as admin:
        admin.flush(Tier.CLUSTER)
    progress.say(f"{_ONE} has written {_cluster_of(agent).stored_count:,} blocks to CLUSTER")


def _stop_server(stop: Callable[[], None], agents: Agents, progress: Progress) -> None:
    """Returns when every agent has noticed."""
    progress.step("killing the Valkey")
    stop()
    stopped_at = time.monotonic()
    for name, agent in agents.items():
        if not comes_true(partial(_has_noticed, agent), _NOTICE_SECONDS):
            raise RuntimeError(f"{name} does not notice that its CLUSTER is gone")
    seconds = time.monotonic() - stopped_at
    progress.say(f"the Valkey has been killed; {seconds:.1f} s later both nodes know:")
    for name, agent in agents.items():
        progress.say(f"{name}: CLUSTER is {state_of(_cluster_of(agent))}")


def _has_noticed(agent: AgentProcess) -> bool:
    return _cluster_of(agent).state == TierStats.UNAVAILABLE


def _cluster_of(agent: AgentProcess) -> TierStats:
    return tier_of(agent, block_pb2.TIER_CLUSTER)
