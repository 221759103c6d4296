"""Commands and their replies on one connection, several on their way at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from kvtier.memory import ByteArray
from kvtier.tiers.cluster.replies import Misfit, TooLongReplyError
from kvtier.tiers.cluster.transport import BlockConnection, Buffer

_ASKING = b"*1\r\n$6\r\nASKING\r\n"


class _Unanswered:
    """Where a reply will be."""


UNANSWERED = _Unanswered()


@dataclass(frozen=True, slots=True)
class Fetch:
    """A value to be read: its first `head_bytes` and, straight into `cell`, all the rest.

    `cell` is contiguous, writable, and holds anything if the fetch does not succeed.
    """

    name: bytes
    head_bytes: int
    cell: ByteArray


class Exchange(Protocol):
    """Commands that may go to several servers: `replies` has a place for each.

    `run` sends those at `positions` over one connection and puts their replies, errors among
    them, into their places; ASKING goes before each if Redis Cluster wants that. After an exception
    some places are filled, and the connection has been dropped.
    """

    replies: list[Any]

    def run(
        self, connection: BlockConnection, positions: Sequence[int], *, asking: bool
    ) -> None: ...


@dataclass
class _CommandExchange:
    """Commands that are all sent before a reply is read."""

    commands: Sequence[Sequence[Buffer]]
    replies: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.replies = [UNANSWERED] * len(self.commands)

    def _send(self, connection: BlockConnection, positions: Sequence[int], *, asking: bool) -> None:
        connection.send(_parts([self.commands[each] for each in positions], asking))


class LineExchange(_CommandExchange):
    """Commands that are answered with a line."""

    def run(self, connection: BlockConnection, positions: Sequence[int], *, asking: bool) -> None:
        self._send(connection, positions, asking=asking)
        step = 2 if asking else 1
        lines = connection.read_lines(step * len(positions))[step - 1 :: step]
        for position, line in zip(positions, lines, strict=True):
            is_error = line.startswith(b"-")
            self.replies[position] = connection.parse_error(line) if is_error else line


class ReplyExchange(_CommandExchange):
    """Commands with replies of any kind, kept as they are; they must be small."""

    def run(self, connection: BlockConnection, positions: Sequence[int], *, asking: bool) -> None:
        self._send(connection, positions, asking=asking)
        for position in positions:
            if asking:
                connection.read_lines(1)
            self.replies[position] = connection.read_reply()


@dataclass
class BlockExchange:
    """Values, each asked for when the one before is nearly here.

    Several large replies at once would cost the server two to three times as much.
    """

    fetches: Sequence[Fetch]
    replies: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.replies = [UNANSWERED] * len(self.fetches)

    def run(self, connection: BlockConnection, positions: Sequence[int], *, asking: bool) -> None:
        asked = 0

        def ask_up_to(count: int) -> None:
            nonlocal asked
            while asked < min(count, len(positions)):
                fetch = self.fetches[positions[asked]]
                asked += 1
                connection.send(_parts([[command(b"GET", fetch.name)]], asking))

        for number, position in enumerate(positions):
            ask_up_to(number + 1)
            if asking:
                connection.read_lines(1)
            fetch = self.fetches[position]
            ask_next = partial(ask_up_to, number + 2)
            try:
                self.replies[position] = connection.read_block(
                    fetch.head_bytes, fetch.cell, ask_next
                )
            except TooLongReplyError as error:
                self.replies[position] = Misfit(error.size_bytes)
                raise


def command(*arguments: bytes) -> bytes:
    """A command with small arguments as the server wants it."""
    lines = [b"*%d\r\n" % len(arguments)]
    lines += [b"$%d\r\n%b\r\n" % (len(each), each) for each in arguments]
    return b"".join(lines)


def _parts(commands: Sequence[Sequence[Buffer]], asking: bool) -> list[Buffer]:
    parts = [part for each in commands for part in ([_ASKING, *each] if asking else each)]
    if len(commands) > 1 and all(type(part) is bytes for part in parts):
        return [b"".join(parts)]  # type: ignore[arg-type]  # they are all bytes
    return parts
