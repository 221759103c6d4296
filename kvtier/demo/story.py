"""The order of events: an agent, and three workers one after the other."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from kvtier.client.admin import AdminClient
from kvtier.demo.exchange import Task
from kvtier.demo.progress import Progress
from kvtier.demo.report import Turn, hits_by_tier, tier_line, turns_table, verdict
from kvtier.demo.worker_process import WorkerFailedError, run_worker
from kvtier.errors import KvtierError
from kvtier.testing import AgentProcess

_NEW_TOKENS = 24
_BLOCK_TOKENS = 64
_MIN_BLOCKS = 4
#: Occupied only as far as blocks need it.
_HOST_CAPACITY = "4GiB"
_WORKERS = (
    ("worker 1", "reads a text and stores its KV"),
    ("worker 2", "is asked the same and finds it"),
    ("worker 3", "goes on with a longer conversation"),
)


def tell(model: str | None, tokens: int) -> int:
    """Runs all of it; 0 if every token is that of a run without kvtier, else 1."""
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
    for line in lines:
        out.print(line)
    is_good, sentence = verdict(turns)
    out.print(sentence)
    return 0 if is_good else 1


def _play(
    model: str | None, tokens: int, directory: Path, progress: Progress
) -> tuple[list[Turn], list[str]]:
    """What each worker did, and the agent's own counts, tier by tier."""
    agent = AgentProcess(directory, {"tiers.host.capacity": _HOST_CAPACITY})
    with progress:
        progress.step("starting an agent")
        with agent, AdminClient(agent.admin_address) as admin:
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
            for worker, role in _WORKERS:
                # The last one continues what the others were asked and answered.
                is_last = worker == _WORKERS[-1][0]
                answer = turns[0].outcome.answer if is_last else ()
                task = replace(task, worker=worker, answer=answer)
                turns.append(_turn(task, role, directory, admin, progress))
            return turns, [tier_line(tier) for tier in admin.get_stats().tiers]


def _turn(task: Task, role: str, directory: Path, admin: AdminClient, progress: Progress) -> Turn:
    before = admin.get_stats()
    outcome = run_worker(
        task, directory, lambda doing: progress.step(f"{task.worker} {role}: {doing}")
    )
    progress.say(
        f"{task.worker} {role}: {outcome.restored_tokens:,} of {outcome.prompt_tokens:,} tokens "
        f"from the cache, first token after {outcome.cached_seconds:.2f} s "
        f"instead of {outcome.cold_seconds:.2f} s"
    )
    return Turn(task.worker, outcome, hits_by_tier(before, admin.get_stats()))
