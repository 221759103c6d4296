"""Keys of a terminal, by name."""

from __future__ import annotations

import os
import re
import select
from typing import Final

_SEQUENCE: Final = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|\x1b|[\x00-\x7f]|[\x80-\xff]+")
_NAMES: Final = {
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b"\t": "tab",
    b"\x7f": "escape",
    b"\b": "escape",
    b"\x1a": "suspend",
    b"A": "up",
    b"B": "down",
    b"C": "enter",
    b"D": "escape",
    b"H": "home",
    b"F": "end",
    b"5~": "page up",
    b"6~": "page down",
    b"k": "up",
    b"j": "down",
    b"g": "home",
    b"G": "end",
}
#: The rest of a sequence comes at once; after a lone escape nothing does.
_SEQUENCE_SECONDS: Final = 0.03


def read_keys(fd: int) -> list[str]:
    """What was typed: names, or characters. Raises EOFError when the terminal is gone."""
    try:
        data = os.read(fd, 1024)
        while re.search(rb"\x1b[\[O]?[0-9;]*$", data) and _has_more(fd):
            data += os.read(fd, 1024)
    except OSError as error:
        raise EOFError from error
    if not data:
        raise EOFError
    return [_name(each) for each in _SEQUENCE.findall(data)]


def _has_more(fd: int) -> bool:
    return bool(select.select([fd], [], [], _SEQUENCE_SECONDS)[0])


def _name(sequence: bytes) -> str:
    if len(sequence) > 1 and sequence.startswith(b"\x1b"):
        return _NAMES.get(sequence[2:], "")
    if sequence in (b"A", b"B", b"C", b"D", b"H", b"F"):
        return sequence.decode()
    return _NAMES.get(sequence) or sequence.decode("utf-8", "replace")
