"""Which tier supplied a block, of those that come from slower ones and from the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from kvtier.agent.serving.leasing import Arrived
from kvtier.agent.sessions.grants import Granted
from kvtier.core.block import BlockKeys, Lane, Tier
from kvtier.core.lease import LeaseKind
from kvtier.testing import LateAccelerator
from tests.faults.blocks import Verdict, hashes_of, store
from tests.gpu.node import load, running_node, worker

#: Some slices of a load.
_COUNT = 600


class Uncopied(Arrived):
    """What has arrived, where to look into each entry of it is a mistake."""

    def __or__(self, other: object) -> NoReturn:
        raise AssertionError("it was copied")

    def __iter__(self) -> Iterator[NoReturn]:
        raise AssertionError("it was copied")


def test_a_long_load_does_not_copy_for_each_slice_what_has_arrived() -> None:
    late = LateAccelerator(delay_seconds=0.0)
    with running_node(
        {"cpu": late}, device_capacity="64MiB", tiers__host__capacity="256MiB"
    ) as node:
        hashes, lane = hashes_of("a", _COUNT), Lane()
        with worker(node) as namespace:
            assert store(namespace, "a", _COUNT) == _COUNT
            load(namespace, hashes[:300])
            node.settle()
            assert load(namespace, hashes[:300]) == Verdict(300)
            [session] = node.agent.sessions
            agent, other = node.agent, Uncopied({(lane, hashes[-1]): node.device})

            async def lease() -> list[int]:
                grants = agent.grants
                with grants.granting(LeaseKind.LOAD, session, 0.0) as lease:
                    granted = Granted(lease)
                    await agent.loading._leasing.lease(
                        session, BlockKeys(lane, tuple(hashes)), granted, other, node.device, False
                    )
                grants.release(lease)
                return granted.sources

            sources = node.do(lease())
        assert sources == [Tier.GPU] * 300 + [Tier.HOST] * 299 + [Tier.GPU]
