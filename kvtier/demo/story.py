"""The order of events: an agent, three workers one after the other, a restart, one more worker."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from kvtier.demo.agent import make_agent, restart, stats_of
from kvtier.demo.exchange import Task
from kvtier.demo.progress import Progress
from kvtier.demo.report import Turn, hits_by_tier, tier_line, turns_table, verdict
from kvtier.demo.worker_process import WorkerFailedError, run_worker
from kvtier.errors import KvtierError
from kvtier.testing import AgentProcess

_NEW_TOKENS = 24
_BLOCK_TOKENS = 64
_MIN_BLOCKS = 4


@dataclass(frozen=True)
class Role:
    """What a worker is there for, and the tier that is to serve it; "" for the first."""

    worker: str
    does: str
    source: str
    goes_on: bool = False


_BEFORE_RESTART = (
    Role("worker 1", "reads a text and stores its KV", ""),
    Role("worker 2", "is asked the same and finds it", "HOST"),
    Role("worker 3", "goes on with a longer conversation", "HOST", goes_on=True),
)
_AFTER_RESTART = Role("worker 4", "is asked as worker 2 was and finds it", "DISK")


def tell(model: str | None, tokens: int) -> int:
    """Runs all of it; 0 if every token is that of a run without kvtier, and every worker but the
    first was served by the tier that it should be; else 1."""
    out = Console(highlight=False, markup=False, soft_wrap=True)
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, width=240)
    try:
        with tempfile.TemporaryDirectory(prefix="kvtier-demo-") as directory:
            turns, lines = _play(model, tokens, Path(directory), Progress(out))
    except (WorkerFailedError, KvtierError, RuntimeError, OSError) as error:
        out.print(f"kvtier demo failed: {error}")
        return 1
    out.print(turns_table(turns))
    out.print("Since its second start the agent has counted:")
    for line in lines:
        out.print(line)
    is_good, sentence = verdict(turns)
    out.print(sentence)
    return 0 if is_good else 1


def _play(
    model: str | None, tokens: int, directory: Path, progress: Progress
) -> tuple[list[Turn], list[str]]:
    """What each worker did, and the agent's own counts since the restart, tier by tier."""
    agent = make_agent(directory)
    with progress:
        progress.step("starting an agent")
        with agent:
            task = Task(
                address=agent.address,
                worker="",
                model=model or str(directory / "model"),
                is_made=model is None,
                prompt_tokens=tokens,
                new_tokens=_NEW_TOKENS,
                block_tokens=min(_BLOCK_TOKENS, tokens // _MIN_BLOCKS),
            )
            turns: list[Turn] = []
            for role in _BEFORE_RESTART:
                # Who goes on does so with what the others were asked and answered.
                answer = turns[0].outcome.answer if role.goes_on else ()
                turns.append(_turn(replace(task, answer=answer), role, agent, progress))
            restart(agent, progress)
            turns.append(_turn(task, _AFTER_RESTART, agent, progress))
            return turns, [tier_line(tier) for tier in stats_of(agent).tiers]


def _turn(task: Task, role: Role, agent: AgentProcess, progress: Progress) -> Turn:
    does = f"{role.worker} {role.does}"
    before = stats_of(agent)
    outcome = run_worker(
        replace(task, worker=role.worker),
        agent.directory,
        lambda doing: progress.step(f"{does}: {doing}"),
    )
    progress.say(
        f"{does}: {outcome.restored_tokens:,} of {outcome.prompt_tokens:,} tokens "
        f"from the cache, first token after {outcome.cached_seconds:.2f} s "
        f"instead of {outcome.cold_seconds:.2f} s"
    )
    return Turn(role.worker, outcome, hits_by_tier(before, stats_of(agent)), role.source)
