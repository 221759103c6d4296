"""What engines' requests asked for: the last of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import Lane, Tier

_MOST_CHARACTERS: Final = 256
#: Of hashes, for each request on average: 512 of 32 bytes.
_HASH_BYTES: Final = 16 << 10
#: Of what is kept beside hashes, roughly.
_REQUEST_BYTES: Final = 600


@dataclass(frozen=True, slots=True)
class SeenLookup:
    """The last lookup for one KV group: its hashes, packed, and how many of the blocks were found;
    `tiers` has where the leading ones of these were."""

    lane: Lane
    hash_bytes: int
    hashes: bytes
    parent: bytes
    position: int
    found_count: int
    tiers: dict[Tier, int]

    @property
    def block_count(self) -> int:
        return len(self.hashes) // self.hash_bytes


@dataclass(eq=False, slots=True)
class SeenRequest:
    """Lookups by KV group, the last at a time in seconds of the wall clock."""

    request_id: str
    namespace: Namespace
    time: float = 0.0
    lookups: dict[int, SeenLookup] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        hashes = sum(len(each.hashes) for each in self.lookups.values())
        return hashes + _REQUEST_BYTES * max(1, len(self.lookups))


class SeenRequests:
    """At most `limit` requests, and 16 KiB of hashes for each on average: the latest. The event
    loop owns it. `wall_clock` gives seconds."""

    def __init__(self, limit: int, wall_clock: Callable[[], float]) -> None:
        self.limit = limit
        self.size_bytes = 0
        self._wall_clock = wall_clock
        self._requests: OrderedDict[tuple[int, str], SeenRequest] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[SeenRequest]:
        """The latest first."""
        return reversed(self._requests.values())

    def note(self, namespace: Namespace, request_id: str, lookup: SeenLookup) -> None:
        """A request has asked."""
        key = namespace.namespace_id, request_id[:_MOST_CHARACTERS]
        request = self._requests.pop(key, None)
        if request is None:
            request = SeenRequest(key[1], namespace)
        else:
            self.size_bytes -= request.size_bytes
        request.lookups[lookup.lane.group] = lookup
        request.time = self._wall_clock()
        self._requests[key] = request
        self.size_bytes += request.size_bytes
        most_bytes = self.limit * (_HASH_BYTES + _REQUEST_BYTES)
        while self._requests and (len(self) > self.limit or self.size_bytes > most_bytes):
            self.size_bytes -= self._requests.popitem(last=False)[1].size_bytes

    def find(self, namespace: Namespace, request_id: str) -> SeenRequest | None:
        return self._requests.get((namespace.namespace_id, request_id[:_MOST_CHARACTERS]))

    def forget(self, namespace: Namespace) -> None:
        """It made way for another."""
        for key in [key for key in self._requests if key[0] == namespace.namespace_id]:
            self.size_bytes -= self._requests.pop(key).size_bytes
