"""What blocks and devices cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvtier.errors import ConfigError
from kvtier.sim.replay import TierTally
from kvtier.sim.trace import Trace


class Costs(NamedTuple):
    """What is known. Speeds in bytes a second; a tier without one is read in no time."""

    block_bytes: float | None = None
    token_bytes: int | None = None
    prefill_tokens_per_second: float | None = None
    host_bytes_per_second: float | None = None
    disk_bytes_per_second: float | None = None

    def of(self, trace: Trace) -> Costs:
        """With the size of a trace's blocks: as given, of a model's tokens, or as the trace says.

        Raises ConfigError if it must be known and is not.
        """
        size = self.block_bytes
        if self.token_bytes is not None:
            if len(set(trace.block_tokens)) > 1:
                raise ConfigError(f"--model: {trace.name} has blocks of several lengths")
            size = float(self.token_bytes * trace.block_tokens[0])
        size = size or trace.block_bytes
        if size is None and (self.host_bytes_per_second or self.disk_bytes_per_second):
            raise ConfigError(
                f"--host-gbps, --disk-gbps: how large are the blocks of {trace.name}? "
                "Give --block-bytes or --model"
            )
        return self._replace(block_bytes=size)

    def saved_seconds(self, tiers: Sequence[TierTally]) -> float | None:
        """How much sooner first tokens come, all requests together; None if nobody said how fast
        prefill is.

        A tier slower than computing saves nothing: the agent does not load from it then.
        """
        if self.prefill_tokens_per_second is None:
            return None
        saved = 0.0
        speeds = (self.host_bytes_per_second, self.disk_bytes_per_second)
        for tier, speed in zip(tiers, speeds, strict=False):
            loading = tier.hit_blocks * (self.block_bytes or 0.0) / speed if speed else 0.0
            saved += max(0.0, tier.hit_tokens / self.prefill_tokens_per_second - loading)
        return saved
