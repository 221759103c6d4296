"""Blocks by name in a Redis or Valkey deployment, from any thread, with deadlines.

Deadlines are values of `time.monotonic()`. Every call raises ClusterDownError, and nothing else
of what redis-py or a socket may raise. A call that was not answered may still be carried out: all
of them may be repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

from redis.exceptions import InvalidResponse

from kvtier.tiers.cluster.deadline import until
from kvtier.tiers.cluster.exchange import (
    UNANSWERED,
    BlockExchange,
    Exchange,
    Fetch,
    LineExchange,
    ReplyExchange,
    command,
)
from kvtier.tiers.cluster.failure import REDIS_ERRORS, ClusterDownError, Failure, cluster_down
from kvtier.tiers.cluster.replies import Misfit
from kvtier.tiers.cluster.report import ClusterReport, report_of
from kvtier.tiers.cluster.routing import Journey
from kvtier.tiers.cluster.topology import ClusterSettings, Server, connect
from kvtier.tiers.cluster.transport import BlockConnection, Buffer, view_of

#: The head and payload of a value; that it does not fit; that there is none; or why nobody knows.
Fetched = bytes | Misfit | ClusterDownError | None

_MAX_BATCH = 4096
_SCAN_COUNT = b"1000"
_FLAGS = {b":0": False, b":1": True}


class Existing(Enum):
    """What to do with a value of the same name."""

    REPLACE = "replace"
    KEEP = "keep"


class ClusterStore:
    """Connects when it is first used. Raises ConfigError for TLS files that cannot be used."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._topology = connect(settings)

    def check(self, deadline: float) -> ClusterReport:
        """What there is, and what is to be warned of."""
        with _their_errors(), until(deadline):
            infos = []
            for server in self._topology.servers():
                with server.connection() as connection:
                    infos.append(connection.call("INFO"))
            return report_of(infos)

    def exist(self, names: Sequence[bytes], deadline: float) -> list[bool | None]:
        """Whether there are values, in one round trip for each server and 4096 names.

        None where a server did not answer; raises only if none did.
        """
        return self._flags(b"EXISTS", names, deadline)

    def delete(self, names: Sequence[bytes], deadline: float) -> int:
        """How many there were, as far as servers answered; raises only if none did."""
        return self._flags(b"UNLINK", names, deadline).count(True)

    def _flags(self, verb: bytes, names: Sequence[bytes], deadline: float) -> list[bool | None]:
        """What `:0` and `:1` say, or None without an answer, for each name.

        Raises if there is no answer.
        """
        flags: list[bool | None] = []
        error: BaseException | None = None
        for start in range(0, len(names), _MAX_BATCH):
            batch = names[start : start + _MAX_BATCH]
            exchange = _FlagExchange(verb, batch)
            error = self._run(exchange, batch, deadline)
            for reply in exchange.replies:
                if reply is not True and reply is not False:
                    error = reply if isinstance(reply, Exception) else error
                    reply = None
                flags.append(reply)
        if error is not None and flags.count(None) == len(flags):
            raise cluster_down(error) from error
        return flags

    def store(
        self,
        name: bytes,
        buffers: Sequence[Buffer],
        ttl_seconds: int,
        deadline: float,
        existing: Existing = Existing.REPLACE,
    ) -> bool:
        """Whether it was stored: with KEEP not if there is one, which a repetition may have made.

        The value is all buffers, sent from where they are; they are contiguous and must not change
        until this returns. `ttl_seconds` is at least 1.
        """
        size_bytes = sum(view_of(each).nbytes for each in buffers)
        options = [b"EX", b"%d" % ttl_seconds] + ([b"NX"] if existing is Existing.KEEP else [])
        start = b"*%d\r\n$3\r\nSET\r\n" % (3 + len(options))
        start += b"$%d\r\n%b\r\n$%d\r\n" % (len(name), name, size_bytes)
        end = b"\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in options)
        # With KEEP a refusal is `$-1`, which is no line.
        kind = ReplyExchange if existing is Existing.KEEP else LineExchange
        [reply] = self._all(kind([[start, *buffers, end]]), [name], deadline)
        if reply not in (b"+OK", b"OK", None):
            raise ClusterDownError(Failure.PROTOCOL, "a reply that SET does not give")
        return reply is not None

    def fetch(self, fetches: Sequence[Fetch], deadline: float) -> list[Fetched]:
        """For each the head, its payload being in its cell; or None, a Misfit, or an error.

        This raises nothing: what has come before a server failed has come. Those of one server
        pass over one connection, with at most one payload on its way; cells are not written to
        after the return.
        """
        exchange = BlockExchange(fetches)
        error = self._run(exchange, [each.name for each in fetches], deadline)
        return [_fetched(reply, error) for reply in exchange.replies]

    def fetch_head(self, name: bytes, size_bytes: int, deadline: float) -> bytes | None:
        """The first bytes of a value, fewer if it is shorter; None if there is none.

        An empty value counts as none. `size_bytes` is at least 1, and less than 16 MiB.
        """
        parts = command(b"GETRANGE", name, b"0", b"%d" % (size_bytes - 1))
        [reply] = self._all(ReplyExchange([[parts]]), [name], deadline)
        return _value(reply) or None

    def sizes(self, names: Sequence[bytes], deadline: float) -> list[int | None]:
        """Bytes of each value, 0 if there is none, in one round trip for each server and 4096.

        None where a server did not answer, or there is something else; this raises nothing.
        """
        sizes: list[int | None] = []
        for start in range(0, len(names), _MAX_BATCH):
            batch = names[start : start + _MAX_BATCH]
            exchange = LineExchange([(command(b"STRLEN", name),) for name in batch])
            self._run(exchange, batch, deadline)
            sizes += [_size(reply) for reply in exchange.replies]
        return sizes

    def remaining_seconds(self, names: Sequence[bytes], deadline: float) -> list[float | None]:
        """How long each value lives on, likewise; None also if there is none, or without end."""
        remaining: list[float | None] = []
        for start in range(0, len(names), _MAX_BATCH):
            batch = names[start : start + _MAX_BATCH]
            exchange = LineExchange([(command(b"PTTL", name),) for name in batch])
            self._run(exchange, batch, deadline)
            milliseconds = [_size(reply) for reply in exchange.replies]
            remaining += [None if each is None else each / 1000 for each in milliseconds]
        return remaining

    def put(self, name: bytes, value: bytes, ttl_seconds: int, deadline: float) -> None:
        """For small values: a heartbeat, a generation id."""
        self.store(name, [value], ttl_seconds, deadline)

    def ask(self, name: bytes, commands: Sequence[Sequence[bytes]], deadline: float) -> list[Any]:
        """Replies to small commands about one name, all sent at once to the server that has it.

        Each is bytes, a number, None, a list of them, or the error that the server gave; together
        they are below 16 MiB for each command.
        """
        exchange = ReplyExchange([[command(*each)] for each in commands])
        error = self._run(exchange, [name] * len(commands), deadline)
        if any(reply is UNANSWERED for reply in exchange.replies):
            raise cluster_down(error) from error
        return exchange.replies

    def scan(self, prefix: bytes, deadline: float) -> Iterator[bytes]:
        """Names that begin so, from all servers; some twice, and none for sure that are new."""
        pattern = re.sub(rb"([\\*?\[\]^-])", rb"\\\1", prefix) + b"*"
        with _their_errors(), until(deadline):
            servers = self._topology.servers()
        for server in servers:
            cursor = b"0"
            while True:
                cursor, names = _scan_page(server, cursor, pattern, deadline)
                yield from names
                if cursor == b"0":
                    break

    def close(self) -> None:
        """Calls in other threads fail, and all later ones."""
        self._topology.close()

    def _all(self, exchange: Exchange, names: Sequence[bytes], deadline: float) -> list[Any]:
        """The replies. Raises ClusterDownError for the first error among them."""
        error = self._run(exchange, names, deadline)
        for reply in exchange.replies:
            if reply is UNANSWERED:
                raise cluster_down(error) from error
            if isinstance(reply, Exception):
                raise cluster_down(reply) from reply
        return exchange.replies

    def _run(self, exchange: Exchange, names: Sequence[bytes], deadline: float) -> BaseException:
        """Returns the reason for places without a reply, if there are any."""
        journey = Journey(self._topology, exchange, names)
        with until(deadline):
            journey.run()
        return journey.error or TimeoutError("the deadline has passed")


class _FlagExchange:
    """A command for each name, answered with a bool; made and read with little ado for each."""

    def __init__(self, verb: bytes, names: Sequence[bytes]) -> None:
        self.replies: list[Any] = [UNANSWERED] * len(names)
        self._start = b"*2\r\n$%d\r\n%b\r\n" % (len(verb), verb)
        self._names = names

    def run(self, connection: BlockConnection, positions: Sequence[int], *, asking: bool) -> None:
        start = command(b"ASKING") + self._start if asking else self._start
        names = [self._names[each] for each in positions]
        connection.send([b"".join([b"%b$%d\r\n%b\r\n" % (start, len(n), n) for n in names])])
        step = 2 if asking else 1
        lines = connection.read_lines(step * len(positions))[step - 1 :: step]
        for position, line in zip(positions, lines, strict=True):
            flag: Any = _FLAGS.get(line)
            self.replies[position] = _refusal(connection, line) if flag is None else flag


def _refusal(connection: BlockConnection, line: bytes) -> Exception:
    if line.startswith(b"-"):
        return connection.parse_error(line)
    return InvalidResponse("a reply that is neither 0 nor 1")


@contextmanager
def _their_errors() -> Iterator[None]:
    try:
        yield
    except REDIS_ERRORS as error:
        raise cluster_down(error) from error


def _fetched(reply: Any, error: BaseException) -> Fetched:
    if reply is UNANSWERED:
        return cluster_down(error)
    if isinstance(reply, Exception):
        return Misfit(-1) if str(reply).startswith("WRONGTYPE") else cluster_down(reply)
    fetched: bytes | Misfit | None = reply
    return fetched


def _size(reply: Any) -> int | None:
    is_size = isinstance(reply, bytes) and reply.startswith(b":") and reply[1:].isdigit()
    return int(reply[1:]) if is_size else None


def _value(reply: Any) -> bytes | None:
    if reply is not None and not isinstance(reply, bytes):
        raise ClusterDownError(Failure.PROTOCOL, "a reply of another type than that of a value")
    return reply


def _scan_page(
    server: Server, cursor: bytes, pattern: bytes, deadline: float
) -> tuple[bytes, list[bytes]]:
    with _their_errors(), until(deadline), server.connection() as connection:
        reply = connection.call("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
    match reply:
        case [bytes() as after, [*names]] if all(isinstance(name, bytes) for name in names):
            return after, names
    raise ClusterDownError(Failure.PROTOCOL, "a reply that SCAN does not give")
