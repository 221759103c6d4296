"""Which agents share the cluster, and how young their namespaces' generations are.

Two small hashes in the cluster itself: `PREFIX:1:nodes` has a JSON object for each node, by node
id; `PREFIX:1:generations` the greatest known generation id for each namespace, both in hexadecimal.
Anybody may have written there: what does not read as it should counts as missing, and is
written over. A server that evicts may drop them; the next heartbeats bring them back.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from kvtier.core.block import Tier
from kvtier.tiers.cluster.failure import ClusterDownError, Failure, cluster_down
from kvtier.tiers.cluster.sealing import VERSION
from kvtier.tiers.cluster.store import ClusterStore

GENERATION_BYTES = 16
DIGEST_BYTES = 32
#: Of a record; of the rest it tells nothing.
MAX_NAMESPACES = 512

_DAY_SECONDS = 24 * 60 * 60
_NODES_TTL_SECONDS = _DAY_SECONDS
_GENERATIONS_TTL_SECONDS = 30 * _DAY_SECONDS
#: Intervals without an announcement after which a node counts as gone, and is forgotten.
_GONE_AFTER = 3
_FORGOTTEN_AFTER = 30
_MAX_NODES = 1024
#: More than MAX_NAMESPACES of the longest names take.
_MAX_RECORD_BYTES = 256 << 10
#: So many of the longest records are half of the longest reply.
_RECORDS_AT_ONCE = 32
_MAX_TEXT = 255
_MAX_INTERVAL_SECONDS = 3600.0
_MAX_SECONDS = float(1 << 40)
_NODE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class NodeTier:
    """What a tier of a node holds."""

    tier: Tier
    capacity_bytes: int
    used_bytes: int
    block_count: int


@dataclass(frozen=True, slots=True)
class NodeNamespace:
    """A namespace that a node has, with the generation id of its blocks there (16 bytes)."""

    tenant: str
    name: str
    layout_digest: bytes
    generation_id: bytes


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What a node says of itself. Times are seconds since 1970.

    `node_id` is letters, digits, `.`, `_`, `:` and `-`, at most 128; other texts are printable, at
    most 255 long. `started_at` is by the node's own clock. `interval_seconds` is the time between
    its announcements, at most 3600. `seen_at` is that of the last one, by the clock of whoever
    called `nodes`; `announce` does not use it.
    """

    node_id: str
    name: str
    epoch: int
    version: str
    pid: int
    address: str
    started_at: float
    interval_seconds: float
    namespaces: tuple[NodeNamespace, ...] = ()
    tiers: tuple[NodeTier, ...] = ()
    seen_at: float = 0.0


class NodeRegistry:
    """Calls block, from any thread, and raise ClusterDownError and nothing else.

    Deadlines are values of `time.monotonic()`. Ages are by the server's clock: clocks of nodes
    may differ.
    """

    def __init__(
        self, store: ClusterStore, *, key_prefix: str, wall_clock: Callable[[], float] = time.time
    ) -> None:
        prefix = f"{key_prefix}:{VERSION}:".encode()
        self._nodes = _Hash(store, prefix + b"nodes", _NODES_TTL_SECONDS)
        self._generations = _Hash(store, prefix + b"generations", _GENERATIONS_TTL_SECONDS)
        self._wall_clock = wall_clock

    def announce(self, record: NodeRecord, deadline: float) -> None:
        """Replaces what was said before under this node id."""
        seen_at = self._nodes.now(deadline)
        told = replace(record, seen_at=seen_at, namespaces=record.namespaces[:MAX_NAMESPACES])
        self._nodes.write({record.node_id.encode(): _encoded(told)}, deadline)

    def withdraw(self, node_id: str, deadline: float) -> None:
        """At a clean stop: the node is gone at once."""
        self._nodes.remove([node_id.encode()], deadline)

    def nodes(self, deadline: float) -> list[NodeRecord]:
        """Those that announced themselves within 3 of their intervals, by name.

        Forgets those that did not within 30.
        """
        now = self._nodes.now(deadline)
        to_local = self._wall_clock() - now
        fields = [each for each in self._nodes.fields(deadline) if _NODE_ID.fullmatch(each)]
        del fields[_MAX_NODES:]
        alive: list[NodeRecord] = []
        forgotten: list[bytes] = []
        for start in range(0, len(fields), _RECORDS_AT_ONCE):
            batch = fields[start : start + _RECORDS_AT_ONCE]
            values = self._nodes.values(batch, _MAX_RECORD_BYTES, deadline)
            for record in filter(None, map(_decoded, batch, values)):
                # Also a clock that was set back: nobody is seen in the future.
                intervals = abs(now - record.seen_at) / record.interval_seconds
                if intervals <= _GONE_AFTER:
                    alive.append(replace(record, seen_at=record.seen_at + to_local))
                elif intervals > _FORGOTTEN_AFTER:
                    forgotten.append(record.node_id.encode())
        if forgotten:
            # One that announces itself just now loses that; its next heartbeat brings it back.
            with contextlib.suppress(ClusterDownError):
                self._nodes.remove(forgotten, deadline)
        return sorted(alive, key=lambda each: (each.name, each.node_id))

    def exchange_generations(
        self, own: Mapping[bytes, bytes], deadline: float
    ) -> dict[bytes, bytes]:
        """For each of `own` what is there in the end; nothing for those that could not be written.

        `own` is from a namespace's digest (32 bytes) to its generation id here (16 bytes). Of two
        generation ids the greater one, as bytes, is the younger. Own ones that are younger are
        written. Two writers at once may leave the older one there, as reading and writing are two
        steps; the next call of the other mends that. Where nothing is known, the first one stays.
        """
        if not own:
            return {}
        known = self._known(own, deadline)
        news = {digest: mine for digest, mine in own.items() if mine > known[digest]}
        if news:
            missing = {digest: mine for digest, mine in news.items() if not known[digest]}
            older = {digest: mine for digest, mine in news.items() if known[digest]}
            # A server that is full still tells what others have invalidated.
            with contextlib.suppress(ClusterDownError):
                self._generations.write(_in_hex(older), deadline, if_missing=_in_hex(missing))
                known = self._known(own, deadline)
                if garbage := {digest: own[digest] for digest in own if not known[digest]}:
                    self._generations.write(_in_hex(garbage), deadline)
                    known = self._known(own, deadline)
        else:
            with contextlib.suppress(ClusterDownError):
                self._generations.write({}, deadline)
        return {digest: there for digest, there in known.items() if there}

    def _known(self, own: Mapping[bytes, bytes], deadline: float) -> dict[bytes, bytes]:
        """Empty for those that are not there."""
        fields = [digest.hex().encode() for digest in own]
        values = self._generations.values(fields, 2 * GENERATION_BYTES, deadline)
        return dict(zip(own, map(_generation, values), strict=True))


@dataclass(frozen=True, slots=True)
class _Hash:
    """A hash of Redis. A name with something else has no fields, and becomes one when written."""

    store: ClusterStore
    name: bytes
    #: From the last write on.
    ttl_seconds: int

    def now(self, deadline: float) -> float:
        """The server's clock, in seconds since 1970."""
        match self._ask([[b"TIME"]], deadline):
            case [[bytes() as seconds, bytes() as micros]] if (
                seconds.isdigit() and micros.isdigit() and len(seconds + micros) <= 18
            ):
                return int(seconds) + int(micros) / 1e6
        raise ClusterDownError(Failure.PROTOCOL, "a reply that TIME does not give")

    def fields(self, deadline: float) -> list[bytes]:
        match self._ask([[b"HKEYS", self.name]], deadline):
            case [[*fields]]:
                return [each for each in fields if isinstance(each, bytes)]
        return []

    def values(
        self, fields: Sequence[bytes], most_bytes: int, deadline: float
    ) -> list[bytes | None]:
        """Those that are not empty, nor longer than `most_bytes`; together they are one reply."""
        sizes = self._ask([[b"HSTRLEN", self.name, field] for field in fields], deadline)
        fitting = [
            field
            for field, size in zip(fields, sizes or (), strict=False)
            if isinstance(size, int) and 0 < size <= most_bytes
        ]
        if not fitting:
            return [None] * len(fields)
        match self._ask([[b"HMGET", self.name, *fitting]], deadline):
            case [[*values]]:
                known = dict(zip(fitting, values, strict=False))
                found = [known.get(field) for field in fields]
                return [each if isinstance(each, bytes) else None for each in found]
        return [None] * len(fields)

    def write(
        self,
        values: Mapping[bytes, bytes],
        deadline: float,
        *,
        if_missing: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> None:
        """And has it live on, also without values."""
        pairs = [part for pair in values.items() for part in pair]
        commands = [[b"HSET", self.name, *pairs]] if pairs else []
        commands += [[b"HSETNX", self.name, *pair] for pair in if_missing.items()]
        commands.append([b"EXPIRE", self.name, b"%d" % self.ttl_seconds])
        if self._ask(commands, deadline) is not None:
            return
        if self._ask([[b"UNLINK", self.name], *commands], deadline) is None:
            raise ClusterDownError(Failure.REFUSED, "others write something else than a hash")

    def remove(self, fields: Sequence[bytes], deadline: float) -> None:
        self._ask([[b"HDEL", self.name, *fields]], deadline)

    def _ask(self, commands: Sequence[Sequence[bytes]], deadline: float) -> list[Any] | None:
        """The replies; None if there is something else under the name."""
        replies = self.store.ask(self.name, commands, deadline)
        errors = [each for each in replies if isinstance(each, Exception)]
        if any(str(each).startswith("WRONGTYPE") for each in errors):
            return None
        if errors:
            raise cluster_down(errors[0]) from errors[0]
        return replies


def _in_hex(values: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {key.hex().encode(): value.hex().encode() for key, value in values.items()}


def _generation(value: bytes | None) -> bytes:
    """Empty, and so older than all others, if it is none."""
    try:
        return _raw((value or b"").decode("ascii"), GENERATION_BYTES)
    except ValueError:
        return b""


def _encoded(record: NodeRecord) -> bytes:
    """Bytes in hexadecimal, tiers by their numbers."""
    return json.dumps(asdict(record), default=bytes.hex, separators=(",", ":")).encode()


def _decoded(field: bytes, value: bytes | None) -> NodeRecord | None:
    try:
        record = _record(json.loads(value or b""))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return record if record.node_id.encode() == field else None


def _record(document: Any) -> NodeRecord:
    """Raises ValueError, TypeError or KeyError for anything else. What is not known is skipped."""
    interval_seconds = _seconds(document["interval_seconds"], _MAX_INTERVAL_SECONDS)
    if not interval_seconds:
        raise ValueError("no interval")
    return NodeRecord(
        node_id=_text(document["node_id"]),
        name=_text(document["name"]),
        epoch=_count(document["epoch"]),
        version=_text(document["version"]),
        pid=_count(document["pid"], 2**31 - 1),
        address=_text(document["address"]),
        started_at=_seconds(document["started_at"]),
        interval_seconds=interval_seconds,
        namespaces=tuple(map(_namespace, document["namespaces"][:MAX_NAMESPACES])),
        tiers=tuple(map(_tier, document["tiers"][: len(Tier)])),
        seen_at=_seconds(document["seen_at"]),
    )


def _namespace(document: Any) -> NodeNamespace:
    return NodeNamespace(
        _text(document["tenant"]),
        _text(document["name"]),
        _raw(document["layout_digest"], DIGEST_BYTES),
        _raw(document["generation_id"], GENERATION_BYTES),
    )


def _tier(document: Any) -> NodeTier:
    counts = ("capacity_bytes", "used_bytes", "block_count")
    return NodeTier(Tier(document["tier"]), *(_count(document[each]) for each in counts))


def _text(value: Any) -> str:
    """What a terminal shows as it is."""
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ValueError("no text")
    return value


def _count(value: Any, most: int = 2**64 - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("no count")
    return value


def _seconds(value: Any, most: float = _MAX_SECONDS) -> float:
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise ValueError("no time")
    return float(value)


def _raw(value: Any, size_bytes: int) -> bytes:
    raw = bytes.fromhex(value)
    if len(raw) != size_bytes:
        raise ValueError(f"{len(raw)} bytes")
    return raw
