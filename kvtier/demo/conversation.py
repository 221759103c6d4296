"""The text that the workers read: Python's own documentation, which every Python has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, cycle, islice
from pydoc_data.topics import topics
from typing import Protocol

#: More than any tokenizer puts into one token, on average.
_CHARACTERS_PER_TOKEN = 8
#: The part of the prompt's length by which the conversation goes on.
_FURTHER_PART = 8


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...


def conversation(tokenizer: Tokenizer, tokens: int, answer: Sequence[int]) -> list[int]:
    """The ids of a prompt of `tokens` tokens; with an answer to it, that and further text too."""
    wanted = tokens + tokens // _FURTHER_PART
    ids = tokenizer.encode(_documentation(wanted * _CHARACTERS_PER_TOKEN))
    return [*ids[:tokens], *answer, *ids[tokens:wanted]] if answer else ids[:tokens]


def _documentation(characters: int) -> str:
    pages = (topics[name] for name in cycle(sorted(topics)))
    return "".join(islice(chain.from_iterable(pages), characters))
