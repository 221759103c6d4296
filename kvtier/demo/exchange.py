"""What the demo and its workers tell each other: one line of JSON each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """For a worker. `answer` has the tokens with which the conversation went on so far.

    `device` is where the worker computes, by torch's name, and reads from a GPU tier; "": on the
    CPU, and it reads from none. `model` is a name or a path; `is_made` says that it is the demo's
    own, to be made if missing.
    """

    address: str
    worker: str
    model: str
    is_made: bool
    prompt_tokens: int
    new_tokens: int
    block_tokens: int
    answer: tuple[int, ...] = ()
    device: str = ""


@dataclass(frozen=True)
class Outcome:
    """From a worker. Seconds `cold` and `cached` are those to the first token without and with
    kvtier; the latter include looking up and loading, which alone took `load_seconds`.
    """

    prompt_tokens: int
    restored_tokens: int
    cold_seconds: float
    cached_seconds: float
    loaded_bytes: int
    load_seconds: float
    stored_bytes: int
    answer: tuple[int, ...]
    reference: tuple[int, ...]

    @property
    def is_identical(self) -> bool:
        """Whether kvtier made no difference to the tokens."""
        return bool(self.answer) and self.answer == self.reference
