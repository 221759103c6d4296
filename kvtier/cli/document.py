"""Protobuf messages as JSON for scripts: proto field names, plain numbers, bytes in hex."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp


def print_json(document: object) -> None:
    """One line, so that a stream of them is JSON Lines."""
    typer.echo(json.dumps(document))


def as_document(message: Message) -> Any:
    """Every field, set or not; a message that is not set is null."""
    if isinstance(message, Timestamp | Duration):
        return message.ToJsonString()
    return {
        field.name: _field(getattr(message, field.name), field)
        if field.message_type is None or _is_set(message, field)
        else None
        for field in message.DESCRIPTOR.fields
    }


def _is_set(message: Message, field: FieldDescriptor) -> bool:
    return bool(field.is_repeated) or message.HasField(field.name)


def _field(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _value(item, field) for key, item in value.items()}
    if field.is_repeated:
        return [_value(item, field) for item in value]
    return _value(value, field)


def _value(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, Message):
        return as_document(value)
    if isinstance(value, bytes):
        return value.hex()
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value
