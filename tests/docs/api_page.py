"""docs/api.md, from the proto files with their comments."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from tests.docs.markdown import anchor, cell, escaped

REPOSITORY = Path(__file__).parents[2]
_PACKAGE = "kvtier/v1"
_HEAD = """# The API

Generated from [proto/kvtier/v1](../proto/kvtier/v1) by `make docs`. Comments there are the
contract; [ARCHITECTURE.md](../ARCHITECTURE.md) has what lies beside gRPC: the attach protocol and
shared memory.

"""
#: Of a path in SourceCodeInfo: which field of its parent an element is.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _NESTED, _NESTED_ENUM, _METHOD, _VALUE = 2, 3, 4, 2, 2
_SCALARS = FieldDescriptorProto.Type


class _Comments:
    """What stands before an element of a file, by its path."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._texts = {
            tuple(each.path): each.leading_comments for each in file.source_code_info.location
        }

    def of(self, *path: int) -> str:
        """Its lines, without the first blank of each."""
        text = self._texts.get(path, "")
        return "\n".join(line.removeprefix(" ") for line in text.strip("\n").split("\n")).strip()


def page() -> str:
    """All of it: first the services, then what they are made of."""
    files = _files()
    parts = [_HEAD]
    for file in files:
        parts += [f"- [{each.name}](#{anchor(each.name)})\n" for each in file.service]
    for file in files:
        parts += _services(file)
    for file in files:
        parts += _types(file)
    return "".join(parts)


def _files() -> list[FileDescriptorProto]:
    protos = sorted(str(path) for path in (REPOSITORY / "proto" / _PACKAGE).glob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "set"
        subprocess.run(
            [
                *(sys.executable, "-m", "grpc_tools.protoc", "-I", str(REPOSITORY / "proto")),
                *("--include_source_info", f"--descriptor_set_out={target}", *protos),
            ],
            check=True,
        )
        found = FileDescriptorSet.FromString(target.read_bytes())
    return [file for file in found.file if file.name.startswith(_PACKAGE)]


def _services(file: FileDescriptorProto) -> Iterator[str]:
    comments = _Comments(file)
    for number, service in enumerate(file.service):
        yield f"\n## {service.name}\n\n{escaped(comments.of(_SERVICE, number))}\n"
        for index, method in enumerate(service.method):
            asked = ("stream of " if method.client_streaming else "") + _link(method.input_type)
            given = ("stream of " if method.server_streaming else "") + _link(method.output_type)
            yield f"\n### {service.name}.{method.name}\n\n{asked} → {given}\n"
            if said := comments.of(_SERVICE, number, _METHOD, index):
                yield f"\n{escaped(said)}\n"


def _types(file: FileDescriptorProto) -> Iterator[str]:
    comments = _Comments(file)
    yield f"\n## {file.name}\n"
    for number, message in enumerate(file.message_type):
        yield from _message(message, message.name, comments, (_MESSAGE, number))
    for number, enum in enumerate(file.enum_type):
        yield from _enum(enum, enum.name, comments, (_ENUM, number))


def _message(
    message: DescriptorProto, name: str, comments: _Comments, path: tuple[int, ...]
) -> Iterator[str]:
    yield f"\n### {name}\n"
    if said := comments.of(*path):
        yield f"\n{escaped(said)}\n"
    rows = [
        (f"`{field.name}` = {field.number}", _type(field), comments.of(*path, _FIELD, index))
        for index, field in enumerate(message.field)
    ]
    yield from _table(("field", "type", ""), rows)
    entries = {each.name for each in message.nested_type if each.options.map_entry}
    for index, nested in enumerate(message.nested_type):
        if nested.name not in entries:
            yield from _message(nested, f"{name}.{nested.name}", comments, (*path, _NESTED, index))
    for index, enum in enumerate(message.enum_type):
        yield from _enum(enum, f"{name}.{enum.name}", comments, (*path, _NESTED_ENUM, index))


def _enum(
    enum: EnumDescriptorProto, name: str, comments: _Comments, path: tuple[int, ...]
) -> Iterator[str]:
    yield f"\n### {name}\n"
    if said := comments.of(*path):
        yield f"\n{escaped(said)}\n"
    yield from _table(
        ("value", ""),
        [
            (f"`{value.name}` = {value.number}", comments.of(*path, _VALUE, index))
            for index, value in enumerate(enum.value)
        ],
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n"
    for row in rows:
        yield f"| {' | '.join(map(cell, row))} |\n"


def _type(field: FieldDescriptorProto) -> str:
    named = field.type in (_SCALARS.TYPE_MESSAGE, _SCALARS.TYPE_ENUM)
    text = _link(field.type_name) if named else _SCALARS.Name(field.type)[5:].lower()
    if field.type_name.endswith(f".{_entry_of(field.name)}"):
        return "map of string to string"
    return f"repeated {text}" if field.label == FieldDescriptorProto.LABEL_REPEATED else text


def _entry_of(name: str) -> str:
    """What protoc calls the entries of a map."""
    return "".join(part.capitalize() for part in name.split("_")) + "Entry"


def _link(type_name: str) -> str:
    name = type_name.removeprefix(".kvtier.v1.")
    if name.startswith("."):
        return name.removeprefix(".google.protobuf.")
    return f"[{name}](#{anchor(name)})"
