"""Sends requests to the node that has the longest prefix, and compares that with taking turns.

    python examples/router.py [--requests 400]

Two agents play two nodes on this machine, as in `kvtier demo --nodes 2`, each with too little HOST
for all conversations. A router follows what each of them has (`kvtier.client.events`) and asks no
agent before it decides. Needs nothing but kvtier.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random

import numpy as np

from kvtier import Client, NamespaceSpec
from kvtier.client.events import Follower
from kvtier.hashing import ALGORITHM, block_hashes
from kvtier.testing import AgentProcess

BLOCK_TOKENS, BLOCK_BYTES = 16, 16 << 10
SPEC = NamespaceSpec(
    name="router-example",
    block_tokens=BLOCK_TOKENS,
    block_bytes=(BLOCK_BYTES,),
    hash_algorithm=ALGORITHM,
)
HOST = "16MiB"
CONVERSATIONS, SYSTEM_PROMPTS = 40, 4
SYSTEM_TOKENS, TURN_TOKENS, LONGEST_TOKENS = 512, 256, 2048

Hashes = Sequence[bytes]
Route = Callable[[Hashes], int]


@dataclass
class Node:
    """An agent's worker, and what the router knows of the agent."""

    client: Client
    follower: Follower
    blocks: int = 0
    hits: int = 0

    def serve(self, hashes: Hashes) -> None:
        """As an engine does: loads what is there, computes the others and stores them."""
        namespace = self.client.namespace(SPEC)
        found = namespace.lookup(hashes).matched
        namespace.load_into(hashes[:found], np.empty((found, BLOCK_BYTES), np.uint8))
        namespace.store(hashes, np.zeros((len(hashes), BLOCK_BYTES), np.uint8))
        self.blocks += len(hashes)
        self.hits += found


def requests(count: int) -> Iterator[Hashes]:
    """Conversations by chance, each of which grows from turn to turn and begins anew when it is
    long; some share their beginning."""
    random = Random(1)
    talks: dict[int, list[int]] = {}
    for _ in range(count):
        number = random.randrange(CONVERSATIONS)
        tokens = talks.get(number)
        if tokens is None or len(tokens) >= LONGEST_TOKENS:
            system = Random(number % SYSTEM_PROMPTS)
            tokens = talks[number] = [system.randrange(32000) for _ in range(SYSTEM_TOKENS)]
        tokens += [random.randrange(32000) for _ in range(TURN_TOKENS)]
        yield block_hashes(tokens, BLOCK_TOKENS)


def in_turns(nodes: Sequence[Node]) -> Route:
    order = iter(range(1 << 60))
    return lambda hashes: next(order) % len(nodes)


def by_prefix(nodes: Sequence[Node]) -> Route:
    """The longest prefix; where it is as long, the node that had less to do."""

    def route(hashes: Hashes) -> int:
        known = [each.follower.residents.prefix(hashes) for each in nodes]
        return max(range(len(nodes)), key=lambda i: (known[i], -nodes[i].blocks))

    return route


def play(make_route: Callable[[Sequence[Node]], Route], count: int) -> None:
    """On two new agents."""
    with ExitStack() as stack:
        nodes = [_node(stack) for _ in range(2)]
        route = make_route(nodes)
        for hashes in requests(count):
            nodes[route(hashes)].serve(hashes)
        blocks, hits = sum(each.blocks for each in nodes), sum(each.hits for each in nodes)
        share = " and ".join(f"{each.blocks:,}" for each in nodes)
        print(f"{make_route.__name__:>10}: {hits / blocks:.3f} of {blocks:,} blocks hit ({share})")


def _node(stack: ExitStack) -> Node:
    agent = stack.enter_context(AgentProcess(settings={"tiers.host.capacity": HOST}))
    client = stack.enter_context(Client(agent.address))
    client.namespace(SPEC).lookup([bytes(32)])  # from now on the agent knows the namespace
    name = f"{SPEC.tenant}/{SPEC.name}"
    follower = stack.enter_context(Follower(agent.address, name))
    follower.wait()
    return Node(client, follower)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=400)
    count = parser.parse_args().requests
    if count < 1:
        parser.error("--requests: give at least 1")
    for make_route in (in_turns, by_prefix):
        play(make_route, count)


if __name__ == "__main__":
    main()
