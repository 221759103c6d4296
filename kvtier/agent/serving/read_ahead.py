"""What was used together with a prefix before."""

from __future__ import annotations

from kvtier.agent.sessions.namespaces import Namespace
from kvtier.core.block import BlockKeys, Tier
from kvtier.core.residency import NONE


def continuation(namespace: Namespace, keys: BlockKeys, count: int) -> BlockKeys | None:
    """The blocks of DISK that continue the last of some keys, up to `count`; None if none does.

    Only along a chain without branches, and only as far as the blocks were written one right after
    the other: those of one request are, others are not (as the kernel reads on in a file that is
    read in order). Costs O(count).
    """
    lane = keys.lane
    disk = namespace.tiers[Tier.DISK][lane.group]
    residency, generations = disk.residency, disk.table.generations
    row = residency.find(lane, keys.hashes[-1])
    hashes: list[bytes] = []
    while row != NONE and len(hashes) < count:
        child = residency.first_child[row]
        if child == NONE or not residency.is_only_child(child):
            break
        written = generations[residency.slot[child]] - generations[residency.slot[row]]
        if written != 1:
            break
        hashes.append(residency.describe(child)[1])
        row = child
    if not hashes:
        return None
    return BlockKeys(lane, tuple(hashes), keys.hashes[-1], keys.position + len(keys.hashes))
