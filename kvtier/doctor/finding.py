"""What was looked at, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The worst first."""

    PROBLEM = "problem"
    WARNING = "warning"
    OK = "ok"
    SKIPPED = "skipped"

    @property
    def place(self) -> int:
        """In a list that begins with the worst."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and, unless it is well, what to do."""

    verdict: Verdict
    subject: str
    found: str
    advice: str = ""


def ok(subject: str, found: str) -> Finding:
    return Finding(Verdict.OK, subject, found)


def warning(subject: str, found: str, advice: str) -> Finding:
    return Finding(Verdict.WARNING, subject, found, advice)


def problem(subject: str, found: str, advice: str) -> Finding:
    return Finding(Verdict.PROBLEM, subject, found, advice)


def skipped(subject: str, found: str) -> Finding:
    return Finding(Verdict.SKIPPED, subject, found)
