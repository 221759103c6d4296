"""The incidents of docs/operations.md: what to type, and what one sees."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
_PARTS = ("Symptom:", "```console", "Cause:", "Action:")


@dataclass
class Look:
    """One command, and the lines to look for, in that order; `...` stands for anything."""

    command: str
    lines: list[str] = field(default_factory=list)

    def arguments(self, **names: str) -> list[str]:
        """After `kvtier`, with what stands for a name replaced."""
        words = shlex.split(self.command)
        assert words.pop(0) == "kvtier", self.command
        for name, value in names.items():
            words = [word.replace(name, value) for word in words]
        return words

    def missing(self, output: str) -> str:
        """The first line that is not in the output, after those before it; empty if all are."""
        said = [" ".join(line.split()) for line in output.splitlines()]
        for line in self.lines:
            words = re.split(r"\s*\.\.\.\s*", " ".join(line.split()))
            pattern = ".*".join(map(re.escape, words))
            place = next((i for i, each in enumerate(said) if re.search(pattern, each)), None)
            if place is None:
                return line
            said = said[place + 1 :]
        return ""


def incidents(page: str) -> dict[str, list[Look]]:
    """By the incident's name. Each has all of its parts."""
    found = {}
    part = page.partition("\n## Incidents\n")[2].partition("\n## ")[0]
    for section in part.split("\n### ")[1:]:
        name, _, text = section.partition("\n")
        places = [text.find(part) for part in _PARTS]
        assert -1 not in places, f"{name} lacks one of {_PARTS}"
        assert places == sorted(places), name
        looks: list[Look] = []
        console = text.partition("```console\n")[2].partition("```")[0]
        for line in console.splitlines():
            if line.startswith("$ "):
                looks.append(Look(line.removeprefix("$ ")))
            else:
                looks[-1].lines.append(line)
        found[name] = looks
    return found
