"""Behaviour of `kvtier.tiers.disk.manifest`: the newest whole copy counts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from kvtier.core.namespace import NamespaceSpec
from kvtier.tiers.disk.manifest import NAME, Known, Manifest

ONE = Known(NamespaceSpec(name="one", block_bytes=(4096, 100), extra={"a": "é"}), bytes(range(16)))
TWO = Known(NamespaceSpec(name="two", tenant="acme", block_bytes=(1,), shards=4), bytes(16))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.mkdir()
    return paths


def save(paths: list[Path], *known: Known, most_bytes: int = 1 << 20) -> None:
    async def again() -> None:
        manifest = Manifest(paths, most_bytes)
        await manifest.load()
        await manifest.save(known)

    asyncio.run(again())


def load(paths: list[Path]) -> list[Known]:
    return asyncio.run(Manifest(paths, 1 << 20).load())


def test_what_is_saved_is_loaded_from_any_copy(paths: list[Path]) -> None:
    save(paths, ONE, TWO)
    assert load(paths) == load(paths[:1]) == load(paths[1:]) == [ONE, TWO]
    assert [each.name for path in paths for each in path.iterdir()] == [NAME, NAME]


def test_nothing_is_known_where_nothing_was_saved(paths: list[Path]) -> None:
    assert load(paths) == []


def test_the_greatest_revision_counts_in_either_order(paths: list[Path]) -> None:
    save(paths, ONE)
    save(paths[1:], TWO)
    assert load(paths) == load(paths[::-1]) == [TWO]
    save(paths, ONE, TWO)
    documents = [json.loads((path / NAME).read_text()) for path in paths]
    assert [each["revision"] for each in documents] == [3, 3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version":2,"revision":9,"namespaces":[]}',
        '{"version":1,"revision":9}',
        '{"version":1,"revision":9,"namespaces":[{"spec":{"name":"A"},"generation_id":""}]}',
        '{"version":1,"revision":9,"namespaces":[{"spec":{},"generation_id":"00"}]}',
        '{"version":1,"revision":9,"namespaces":[7]}',
        "\xff",
    ],
)
def test_a_damaged_copy_is_passed_over(paths: list[Path], text: str) -> None:
    save(paths, ONE)
    (paths[0] / NAME).write_bytes(text.encode("latin-1"))
    assert load(paths) == [ONE]
    assert load(paths[:1]) == []


def test_one_directory_that_cannot_be_written_is_no_error_all_are(paths: list[Path]) -> None:
    (paths[0] / "namespaces.tmp").mkdir()
    save(paths, ONE)
    assert load(paths) == [ONE]
    (paths[1] / "namespaces.tmp").mkdir()
    with pytest.raises(OSError, match="directory"):
        save(paths, TWO)
    assert load(paths) == [ONE]


def test_it_stays_within_its_reserve(paths: list[Path]) -> None:
    with pytest.raises(OSError, match="more than 50 bytes"):
        save(paths, ONE, most_bytes=100)
    assert load(paths) == []
