"""A worker that calls the agent's parts directly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import xxhash

from kvtier.agent.serving.loading import Found
from kvtier.agent.sessions.grants import Granted
from kvtier.core.block import BlockKeys, BlockStatus, Lane
from kvtier.core.namespace import NamespaceSpec
from kvtier.tiers.arena import cell_of
from kvtier.tiers.size_class import SizeClass
from tests.model.node import Node

PAGE = 4096


def sequence(name: str, count: int, *, start: int = 0, group: int = 0) -> BlockKeys:
    """Keys of consecutive blocks of the sequence of this name."""
    hashes = [
        hashlib.sha256(f"{name} {position}".encode()).digest() for position in range(start + count)
    ]
    parent = hashes[start - 1] if start else b""
    return BlockKeys(Lane(group), tuple(hashes[start:]), parent, start)


@dataclass
class Worker:
    """One attachment and one session."""

    node: Node
    name: str = "model"
    block_bytes: int = PAGE
    tenant: str = "default"

    def __post_init__(self) -> None:
        self.attachment = self.node.attach(f"{self.tenant}/{self.name}".encode().ljust(16))
        spec = NamespaceSpec(tenant=self.tenant, name=self.name, block_bytes=(self.block_bytes,))
        self.session, _ = self.node.sessions.open(self.attachment.token, spec, "")

    @property
    def size_class(self) -> SizeClass:
        return self.session.namespace.groups[0]

    @property
    def stored(self) -> int:
        return len(self.size_class.residency)

    async def reserve(self, keys: BlockKeys, ttl: float = 0.0) -> Granted:
        return await self.node.storing.reserve(self.session, [keys], ttl_seconds=ttl)

    async def commit(self, granted: Granted) -> list[BlockStatus]:
        return await self.node.storing.commit(self.session, granted.lease.lease_id)

    async def store(self, keys: BlockKeys) -> list[BlockStatus]:
        granted = await self.reserve(keys)
        if granted.lease.size_bytes:
            await self.commit(granted)
        return [BlockStatus(status) for status in granted.statuses]

    async def lookup(self, keys: BlockKeys) -> tuple[Found, int]:
        [found], hold_id = await self.node.loading.lookup(self.session, [keys])
        return found, hold_id

    async def load(self, keys: BlockKeys, ttl: float = 0.0) -> Granted:
        return await self.node.loading.load(self.session, [keys], ttl_seconds=ttl)

    def digests(self, granted: Granted) -> list[bytes]:
        """Of what stands in the slots of a reservation."""
        slots = [slot for part in granted.lease.parts for slot in part.slots if slot >= 0]
        cells = [cell_of(self.size_class.table, slot)[: self.block_bytes] for slot in slots]
        return [xxhash.xxh3_128_digest(cell.data) for cell in cells]
