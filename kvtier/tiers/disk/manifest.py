"""namespaces.json: which namespaces DISK has blocks of, and their generations."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiofiles

from kvtier.core.namespace import NamespaceSpec
from kvtier.errors import KvtierError

log = logging.getLogger(__name__)

NAME = "namespaces.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Known:
    """A namespace and the generation id of its blocks."""

    spec: NamespaceSpec
    generation_id: bytes


class Manifest:
    """The file, a copy of it in each directory; the greatest revision counts."""

    def __init__(self, directories: Sequence[Path], most_bytes: int) -> None:
        self._directories = directories
        self._most_bytes = most_bytes
        self._revision = 0

    async def load(self) -> list[Known]:
        """What the newest copy says; nothing if there is none. Damaged copies are logged."""
        newest: list[Known] = []
        for directory in self._directories:
            try:
                async with aiofiles.open(directory / NAME, encoding="utf-8") as file:
                    revision, known = _parsed(await file.read())
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KvtierError) as error:
                log.warning("%s cannot be used: %s", directory / NAME, error)
                continue
            if revision > self._revision:
                self._revision, newest = revision, known
        return newest

    async def save(self, known: Sequence[Known]) -> None:
        """Replaces all copies; returns when they are on the devices.

        Raises OSError if none could be written.
        """
        self._revision += 1
        text = _text(self._revision, known)
        if 2 * len(text) > self._most_bytes:
            raise OSError(f"{NAME} would take more than {self._most_bytes // 2} bytes")
        errors = []
        for directory in self._directories:
            try:
                await _replace(directory / NAME, text)
            except OSError as error:
                log.error("%s cannot be written: %s", directory / NAME, error)
                errors.append(error)
        if len(errors) == len(self._directories):
            raise errors[0]


async def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    async with aiofiles.open(temporary, "w", encoding="utf-8") as file:
        await file.write(text)
        await file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
    await asyncio.to_thread(_rename_and_sync, temporary, path)


def _rename_and_sync(temporary: Path, path: Path) -> None:
    temporary.replace(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _text(revision: int, known: Sequence[Known]) -> str:
    namespaces = [
        {
            "spec": {
                "tenant": each.spec.tenant,
                "name": each.spec.name,
                **each.spec.layout_fields(),
            },
            "generation_id": each.generation_id.hex(),
        }
        for each in known
    ]
    document = {"version": _VERSION, "revision": revision, "namespaces": namespaces}
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _parsed(text: str) -> tuple[int, list[Known]]:
    """Raises ValueError or InvalidRequestError for anything else."""
    document: Any = json.loads(text)
    try:
        if document["version"] != _VERSION:
            raise ValueError(f"version is {document['version']}; this is version {_VERSION}")
        known = [
            Known(
                NamespaceSpec(
                    **{**each["spec"], "block_bytes": tuple(each["spec"]["block_bytes"])}
                ),
                bytes.fromhex(each["generation_id"]),
            )
            for each in document["namespaces"]
        ]
        return int(document["revision"]), known
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not a {NAME}: {error!r}") from error
