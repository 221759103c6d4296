"""A story from its beginning to its end, on the terminal."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from rich.console import Console

from kvtier.demo.exchange import Task
from kvtier.demo.progress import Progress
from kvtier.demo.report import Account, turns_table, verdict
from kvtier.demo.worker_process import WorkerFailedError
from kvtier.errors import KvtierError

_NEW_TOKENS = 24
_BLOCK_TOKENS = 64
_MIN_BLOCKS = 4
#: 128 and the signal's number, as shells have it.
_INTERRUPTED = 130


class Story(Protocol):
    def play(self, task: Task, directory: Path, progress: Progress) -> Account:
        """Runs agents and workers, who keep all that they have in `directory`.

        `task` is that of a worker who reads the text; its agent and name are the story's.
        """


def tell(story: Story, model: str | None, tokens: int, *, as_json: bool = False) -> int:
    """Runs all of it, telling it on stderr if JSON goes to stdout.

    0 if every token is that of a run without kvtier, and every worker but the first was served by
    the tier that it should be; 130 after Ctrl-C; else 1.
    """
    out = Console(highlight=False, markup=False, soft_wrap=True, stderr=as_json)
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, width=240, stderr=as_json)
    progress = Progress(out)
    try:
        with tempfile.TemporaryDirectory(prefix="kvtier-demo-") as directory, progress:
            account = story.play(_task(model, tokens, Path(directory)), Path(directory), progress)
    except (WorkerFailedError, KvtierError, RuntimeError, OSError) as error:
        out.print(f"kvtier demo failed: {error}")
        return 1
    except KeyboardInterrupt:
        out.print("kvtier demo was interrupted; what it started has ended")
        return _INTERRUPTED
    if as_json:
        sys.stdout.write(json.dumps({"workers": [asdict(turn) for turn in account.turns]}) + "\n")
    out.print(turns_table(account.turns))
    for line in account.lines:
        out.print(line)
    is_good, sentence = verdict(account.turns)
    out.print(sentence)
    return 0 if is_good else 1


def _task(model: str | None, tokens: int, directory: Path) -> Task:
    return Task(
        address="",
        worker="",
        model=model or str(directory / "model"),
        is_made=model is None,
        prompt_tokens=tokens,
        new_tokens=_NEW_TOKENS,
        block_tokens=min(_BLOCK_TOKENS, tokens // _MIN_BLOCKS),
    )
