"""Requests gone wrong, the same ones for the same seed: in their fields, and in their bytes."""

from __future__ import annotations

import math
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

_NUMBERS: Final = (0, 1, 2, 7, 15, 16, 17, 63, 64, 65, 255, 256, 4096, 65535, 65536, 1 << 20)
_EDGES: Final = (-1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, -(1 << 63))
_FLOATS: Final = (0.0, -0.0, -1.0, 1e-300, 1.0, 1e308, math.inf, -math.inf, math.nan)
_TEXTS: Final = (
    *("", "*", "/", "default/", "default/fuzz", "default/good", "default/none@0", "../../etc"),
    *("x" * 63, "x" * 64, "\0", "ä\u202e\U0001f600", "a" * 5000, "%s%n{}", "9" * 5000, "٣"),
)
_BITS: Final = {
    Field.CPPTYPE_INT32: (32, True),
    Field.CPPTYPE_INT64: (64, True),
    Field.CPPTYPE_UINT32: (32, False),
    Field.CPPTYPE_UINT64: (64, False),
    Field.CPPTYPE_ENUM: (32, True),
}
_MOST_CHANGES = 4
_DEEPEST = 4


class Mutator:
    """Makes bytes from messages that are right."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def request(self, message: Message) -> bytes:
        """Wrong fields in most, wrong bytes in some, both in a few; a few are still right."""
        draw = self.random.random()
        if draw < 0.02:
            return message.SerializeToString()
        changed = type(message)()
        changed.CopyFrom(message)
        if draw < 0.75:
            for _ in range(self.random.randint(1, _MOST_CHANGES)):
                self._change(changed)
        data = changed.SerializeToString()
        return self.bytes_of(data) if draw > 0.65 else data

    def bytes_of(self, data: bytes) -> bytes:
        """Some places are others, gone, or there twice."""
        changed = bytearray(data)
        for _ in range(self.random.randint(1, _MOST_CHANGES)):
            place = self.random.randrange(len(changed) + 1)
            stop = min(len(changed), place + self.random.choice((1, 1, 2, 8, 64, 1 << 16)))
            changed[place:stop] = self._instead_of(bytes(changed[place:stop]))
        return bytes(changed)

    def _instead_of(self, part: bytes) -> bytes:
        kind = self.random.randrange(6)
        if kind == 0 and part:
            return bytes([part[0] ^ 1 << self.random.randrange(8)]) + part[1:]
        if kind == 1:
            return b""
        if kind == 2:
            return part * self.random.choice((2, 3, 50))
        if kind == 3:  # a number that does not end, or one that is too large
            return b"\xff" * self.random.choice((1, 9, 10, 11))
        if kind == 4:
            return bytes(len(part))
        return self.random.randbytes(self.random.randint(0, 32))

    def _change(self, message: Message, depth: int = 0) -> None:
        """One field of it, or of a message within it, if it has any."""
        if not message.DESCRIPTOR.fields:
            return
        field = self.random.choice(message.DESCRIPTOR.fields)
        value: Any = getattr(message, field.name)
        if field.is_repeated:
            self._change_repeated(message, field, value, depth)
        elif field.cpp_type == Field.CPPTYPE_MESSAGE:
            if depth >= _DEEPEST or self.random.random() < 0.2:
                message.ClearField(field.name)
            else:
                value.SetInParent()
                self._change(value, depth + 1)
        else:
            setattr(message, field.name, self._scalar(field, value))

    def _change_repeated(self, message: Message, field: Field, value: Any, depth: int) -> None:
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            for _ in range(self.random.choice((1, 2, 100))):
                value[self._text()] = self._text()
        elif self.random.random() < 0.15:
            message.ClearField(field.name)
        elif field.cpp_type == Field.CPPTYPE_MESSAGE:
            if not value or self.random.random() < 0.3:
                for _ in range(self.random.choice((1, 2, 3, 300))):
                    value.add()
            if depth < _DEEPEST:
                self._change(self.random.choice(value), depth + 1)
        else:
            is_long = self.random.random() < 0.02
            count = 9000 if is_long else self.random.choice((1, 1, 2, 3, 17, 300))
            value.extend(self._scalar(field, None) for _ in range(count))

    def _scalar(self, field: Field, value: Any) -> Any:
        kind = field.cpp_type
        if kind in _BITS:
            return self._number(*_BITS[kind])
        if kind == Field.CPPTYPE_BOOL:
            return self.random.random() < 0.5
        if kind in (Field.CPPTYPE_DOUBLE, Field.CPPTYPE_FLOAT):
            return self.random.choice(_FLOATS)
        if field.type == Field.TYPE_STRING:
            return self._text()
        if value and self.random.random() < 0.6:
            return self.bytes_of(value)
        return self.random.randbytes(self.random.choice((0, 1, 15, 16, 17, 32, 64, 4096)))

    def _text(self) -> str:
        return self.random.choice(_TEXTS)

    def _number(self, bits: int, is_signed: bool) -> int:
        lowest = -(1 << bits - 1) if is_signed else 0
        highest = (1 << bits - is_signed) - 1
        wanted = self.random.choice(_NUMBERS if self.random.random() < 0.6 else _EDGES)
        return min(max(wanted, lowest), highest)
