"""One policy, one capacity, one trace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvtier.core.policies.named import NewPolicy, find_policy
from kvtier.errors import ConfigError
from kvtier.sim.belady import BELADY, Belady
from kvtier.sim.capacity import Capacity
from kvtier.sim.costs import Costs
from kvtier.sim.outcome import Outcome, outcome
from kvtier.sim.reading import Progress
from kvtier.sim.replay import Replay, Tally, TierSpec
from kvtier.sim.trace import Trace


@dataclass(frozen=True)
class Experiment:
    """Policies are names, and `lru+second_hit` one behind a rule of admission.

    `capacities` are HOST's, and DISK's if there is one; Belady has both as one tier.

    Raises ConfigError for a policy that there is not.
    """

    policy: str
    capacities: tuple[Capacity, ...]
    disk_policy: str
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (self.policy, self.disk_policy):
            if name != BELADY:
                _find(name)
        if self.disk_policy == BELADY:
            raise ConfigError(f"{BELADY} is a ceiling, not a policy of DISK")

    def run(
        self, trace: Trace, costs: Costs, progress: Progress = lambda done, whole: None
    ) -> Outcome:
        """Replays the trace; `costs` are of its blocks.

        Raises ConfigError where a capacity does not say how many blocks.
        """
        blocks = [each.blocks(trace, costs.block_bytes) for each in self.capacities]
        disk_policy = self.disk_policy if len(blocks) > 1 else None
        if self.policy == BELADY:
            blocks, disk_policy = [sum(blocks)], None
        began = time.process_time()
        tally = self._replay(trace, blocks, progress)
        elapsed_seconds = time.process_time() - began
        policies = (self.policy, disk_policy)
        fraction = self.capacities[0].fraction if len(self.capacities) == 1 else None
        return outcome(trace, policies, blocks, fraction, tally, costs, elapsed_seconds)

    def _replay(self, trace: Trace, blocks: Sequence[int], progress: Progress) -> Tally:
        if self.policy == BELADY:
            return Belady(trace, blocks[0]).run(progress)
        policies = (_find(self.policy), _find(self.disk_policy))
        tiers = [TierSpec(*each) for each in zip(blocks, policies, strict=False)]
        return Replay(trace, tiers, self.seed).run(progress)


def _find(name: str) -> NewPolicy:
    try:
        return find_policy(*name.split("+", 1))
    except ValueError as error:
        raise ConfigError(str(error)) from error
