"""A worker's part in a story."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtier.demo.agent import stats_of
from kvtier.demo.exchange import Task
from kvtier.demo.progress import Progress
from kvtier.demo.report import Turn, hits_by_tier
from kvtier.demo.worker_process import run_worker
from kvtier.testing import AgentProcess


@dataclass(frozen=True)
class Role:
    """What a worker is there for, and the tier that is to serve it; "" for the first.

    `node` is where it runs, "" if there is only one.
    """

    worker: str
    does: str
    source: str
    node: str = ""

    def play(
        self,
        task: Task,
        agent: AgentProcess,
        progress: Progress,
        answer: tuple[int, ...] = (),
    ) -> Turn:
        """Runs it; it goes on after `answer`, if there is one."""
        does = " ".join(filter(None, (self.worker, self.node and f"on {self.node}", self.does)))
        before = stats_of(agent)
        outcome = run_worker(
            replace(task, address=agent.address, worker=self.worker, answer=answer),
            agent.directory,
            lambda doing: progress.step(f"{does}: {doing}"),
        )
        cold = f" instead of {outcome.cold_seconds:.2f} s" if outcome.restored_tokens else ""
        progress.say(
            f"{does}: {outcome.restored_tokens:,} of {outcome.prompt_tokens:,} tokens "
            f"from the cache, first token after {outcome.cached_seconds:.2f} s{cold}"
        )
        hits = hits_by_tier(before, stats_of(agent))
        return Turn(self.worker, outcome, hits, self.source, self.node)
