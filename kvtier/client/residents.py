"""What a namespace has on an agent, replayed from its events."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from kvtier.core.block import Lane, Tier
from kvtier.errors import EventsLostError
from kvtier.v1 import block_pb2
from kvtier.v1 import cache_events_pb2 as pb

_FIRST_LANE = Lane()


class Residents:
    """Blocks by lane, each with the tiers that hold it.

    `take` what WatchEvents sends, in order; `request` asks for what comes next. One thread may
    take while others read.
    """

    def __init__(self, namespace: str) -> None:
        #: As `tenant/name`; with the digest once the agent has said it.
        self.namespace = namespace
        self.epoch = 0
        #: Of the last change; 0 until a snapshot is complete.
        self.revision = 0
        self.is_complete = False
        #: A bit for each tier.
        self._lanes: dict[Lane, dict[bytes, int]] = {}

    def __len__(self) -> int:
        """Blocks; one that several tiers hold is one."""
        return sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[tuple[Tier, Lane, bytes]]:
        """Every block, once for each tier; of each lane as it is at one moment."""
        for lane, blocks in list(self._lanes.items()):
            for block_hash, held in list(blocks.items()):
                for tier in Tier:
                    if held >> tier & 1:
                        yield tier, lane, block_hash

    def tiers(self, block_hash: bytes, lane: Lane = _FIRST_LANE) -> frozenset[Tier]:
        """Those that hold a block."""
        held = self._lanes.get(lane, {}).get(block_hash, 0)
        return frozenset(tier for tier in Tier if held >> tier & 1)

    def prefix(
        self,
        hashes: Sequence[bytes],
        lane: Lane = _FIRST_LANE,
        tiers: Collection[Tier] = tuple(Tier),
    ) -> int:
        """How many of the leading blocks are there, in any of these tiers."""
        blocks, wanted = self._lanes.get(lane, {}), sum(1 << tier for tier in tiers)
        for count, each in enumerate(hashes):
            if not blocks.get(each, 0) & wanted:
                return count
        return len(hashes)

    def request(self) -> pb.WatchEventsRequest:
        """For what has not been taken yet."""
        if not self.is_complete:
            return pb.WatchEventsRequest(namespace=self.namespace, snapshot=True)
        return pb.WatchEventsRequest(
            namespace=self.namespace, start_revision=self.revision + 1, epoch=self.epoch
        )

    def take(self, message: pb.WatchEventsResponse) -> None:
        """Replays a message.

        Raises EventsLostError if changes are missing or come twice: begin with new ones then.
        """
        if self.is_complete and message.epoch != self.epoch:
            raise EventsLostError(f"the epoch is {message.epoch:016x}, and was {self.epoch:016x}")
        count = sum(map(self._replay, message.events))
        if self.is_complete and message.revision != self.revision + count:
            raise EventsLostError(
                f"{count} changes lead from revision {self.revision} to {message.revision}"
            )
        self.epoch, self.revision = message.epoch, message.revision
        self.namespace = message.namespace
        self.is_complete |= message.snapshot_done

    def _replay(self, event: pb.Event) -> int:
        """How many changes it is."""
        match event.WhichOneof("event"):
            case "blocks_stored":
                stored = event.blocks_stored
                return self._change(stored.keys, stored.tier, self._add)
            case "blocks_removed":
                removed = event.blocks_removed
                return self._change(removed.keys, removed.tier, self._remove)
        raise EventsLostError("an event of a kind that this client does not know")

    def _change(
        self,
        keys: block_pb2.BlockKeys,
        tier: int,
        change: Callable[[dict[bytes, int], bytes, int], bool],
    ) -> int:
        blocks = self._lanes.setdefault(Lane(keys.group, keys.shard), {})
        hashes = hashes_of(keys)
        for each in hashes:
            if not change(blocks, each, 1 << tier):
                raise EventsLostError(f"block {each.hex()} came to tier {tier}, or left it, twice")
        return len(hashes)

    @staticmethod
    def _add(blocks: dict[bytes, int], block_hash: bytes, bit: int) -> bool:
        held = blocks.get(block_hash, 0)
        blocks[block_hash] = held | bit
        return not held & bit

    @staticmethod
    def _remove(blocks: dict[bytes, int], block_hash: bytes, bit: int) -> bool:
        held = blocks.get(block_hash, 0)
        if held == bit:
            del blocks[block_hash]
        else:
            blocks[block_hash] = held & ~bit
        return bool(held & bit)


def hashes_of(keys: block_pb2.BlockKeys) -> list[bytes]:
    """As they were packed."""
    size, data = keys.hash_bytes, keys.hashes
    return [data[start : start + size] for start in range(0, len(data), size)] if size else []
