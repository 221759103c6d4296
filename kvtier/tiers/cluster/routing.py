"""Exchanges with the servers that have the keys, again where that may help."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from redis import exceptions as theirs

from kvtier.tiers.cluster.deadline import seconds_left, until
from kvtier.tiers.cluster.exchange import UNANSWERED, Exchange
from kvtier.tiers.cluster.failure import REDIS_ERRORS
from kvtier.tiers.cluster.replies import TooLongReplyError
from kvtier.tiers.cluster.topology import Server, Topology

#: How often something is tried that gets no further; more often where another server may help.
_TRIES_ALONE = 2
_TRIES_WITH_OTHERS = 10
#: Of the time that is left, for a server when others are still to be asked.
_SHARE_WITH_OTHERS = 0.5
_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.2
#: Answers after which the same may succeed a moment later, on this server or another.
_PASSING = (
    theirs.TryAgainError,
    theirs.ClusterDownError,
    theirs.BusyLoadingError,
    theirs.ReadOnlyError,
)
#: Raised while a connection is made: the next one would fare no better.
_FINAL = (theirs.AuthenticationError, theirs.AuthorizationError, theirs.ResponseError)


@dataclass
class _Redirection:
    server: Server
    asking: bool


@dataclass
class Journey:
    """One exchange, until all is answered or nothing more helps, or the thread's deadline."""

    topology: Topology
    exchange: Exchange
    names: Sequence[bytes]
    #: The last reason for an answer that is missing.
    error: BaseException | None = None
    _redirections: dict[int, _Redirection] = field(default_factory=dict)
    _is_final: bool = False
    _failed: list[Server] = field(default_factory=list)

    def run(self) -> None:
        """Raises nothing of redis-py's: errors are among the replies, or in `error`."""
        tries = _TRIES_WITH_OTHERS if self.topology.has_others else _TRIES_ALONE
        waiting = list(range(len(self.names)))
        fruitless = 0
        while waiting:
            before = len(waiting)
            try:
                self._try(waiting)
            except REDIS_ERRORS as error:  # nobody knows who has the keys
                self.error = error
                self._is_final = isinstance(error, _FINAL)
            waiting = [each for each in waiting if self.exchange.replies[each] is UNANSWERED]
            fruitless = fruitless + 1 if len(waiting) == before else 0
            if fruitless >= tries or self._is_final:
                return
            try:
                self._prepare_next(fruitless)
            except TimeoutError:
                self.error = self.error or TimeoutError("the deadline has passed")
                return
            except REDIS_ERRORS as error:
                self.error = error

    def _try(self, waiting: Sequence[int]) -> None:
        groups = self._by_server(waiting)
        for number, (server, asking, positions) in enumerate(groups):
            # One that does not answer leaves time for the others; afterwards it has what is left.
            share = 1.0 if number == len(groups) - 1 else _SHARE_WITH_OTHERS
            try:
                limit = time.monotonic() + share * seconds_left()
                with until(limit), server.connection() as connection:
                    self.exchange.run(connection, positions, asking=asking)
                server.is_suspect = False
            except TooLongReplyError:
                pass  # its place says so; those behind it are asked for again
            except REDIS_ERRORS as error:
                self.error = error
                self._is_final = self._is_final or isinstance(error, _FINAL)
                self._failed.append(server)
                server.is_suspect = True
            for position in positions:
                if isinstance(self.exchange.replies[position], Exception):
                    self._judge(position, server)

    def _by_server(self, waiting: Sequence[int]) -> list[tuple[Server, bool, list[int]]]:
        groups: dict[tuple[Server, bool], list[int]] = {}
        for position in waiting:
            there = self._redirections.pop(position, None)
            if there is None:
                key = self.topology.server_of(self.names[position]), False
            else:
                key = there.server, there.asking
            groups.setdefault(key, []).append(position)
        found = [(server, asking, positions) for (server, asking), positions in groups.items()]
        return sorted(found, key=lambda group: group[0].is_suspect)

    def _judge(self, position: int, server: Server) -> None:
        """Takes an answer away that is none yet."""
        reply = self.exchange.replies[position]
        if isinstance(reply, theirs.AskError):
            there = self.topology.redirected(reply)
            if there is None:
                return
            asking = not isinstance(reply, theirs.MovedError)
            self._redirections[position] = _Redirection(there, asking)
        elif isinstance(reply, _PASSING) and self.topology.has_others:
            self._failed.append(server)
        else:
            return
        self.error = reply
        self.exchange.replies[position] = UNANSWERED

    def _prepare_next(self, fruitless: int) -> None:
        """Raises TimeoutError if there is no time for it."""
        failed = {id(each): each for each in self._failed}
        self._failed.clear()
        left = seconds_left()
        if failed or fruitless > 1:
            pause = _FIRST_PAUSE_SECONDS * 2**fruitless * random.uniform(0.5, 1)
            pause = min(pause, _LONGEST_PAUSE_SECONDS)
            if pause >= left:
                raise TimeoutError("the deadline would pass")
            time.sleep(pause)
        for server in failed.values():
            self.topology.refresh(server)
