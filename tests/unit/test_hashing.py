"""Behaviour of `kvtier.hashing`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvtier.errors import InvalidRequestError
from kvtier.hashing import ALGORITHM, ROOT, block_hashes

PAGE = Path(__file__).parents[2] / "docs" / "hashing.md"


def rows_of_the_page() -> list[list[str]]:
    lines = PAGE.read_text().splitlines()
    tables = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [[cell.replace("`", "").strip() for cell in row] for row in tables[2:]]


def test_the_published_vectors_hold() -> None:
    rows = rows_of_the_page()
    assert len(rows) == 4
    for tokens, block_tokens, parent, extra, hashes in rows:
        computed = block_hashes(
            [int(token) for token in tokens.split()],
            int(block_tokens),
            parent=ROOT if parent == "-" else bytes.fromhex(parent),
            extra=b"" if extra == "-" else bytes.fromhex(extra),
        )
        assert [each.hex() for each in computed] == hashes.split()


def test_the_page_names_the_algorithm() -> None:
    assert f"`{ALGORITHM}`" in PAGE.read_text()


def test_a_partial_block_has_no_hash() -> None:
    assert block_hashes(range(15), 16) == []
    assert len(block_hashes(range(33), 16)) == 2
    assert block_hashes([], 16) == []


def test_hashing_goes_on_after_a_known_block() -> None:
    whole = block_hashes(range(48), 16)
    assert block_hashes(range(16, 48), 16, parent=whole[0]) == whole[1:]


def test_a_hash_depends_on_every_token_before_it() -> None:
    tokens = list(range(32))
    for changed in (0, 15, 16, 31):
        other = [*tokens[:changed], 99, *tokens[changed + 1 :]]
        same = [
            a == b for a, b in zip(block_hashes(tokens, 16), block_hashes(other, 16), strict=True)
        ]
        assert same == [changed >= 16, False]


def test_extra_is_part_of_every_block() -> None:
    plain, salted = block_hashes(range(32), 16), block_hashes(range(32), 16, extra=b"salt")
    assert not set(plain) & set(salted)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32, ">u4", np.uint16])
def test_arrays_of_any_integer_type_hash_as_lists_do(dtype: str) -> None:
    assert block_hashes(np.arange(32).astype(dtype), 16) == block_hashes(range(32), 16)


@pytest.mark.parametrize("tokens", [[-1, 2], [1, 2**32], [1.0, 2.0], [[1, 2], [3, 4]], ["a", "b"]])
def test_what_is_not_a_token_is_refused(tokens: list[int]) -> None:
    with pytest.raises(InvalidRequestError, match="tokens must"):
        block_hashes(tokens, 2)


def test_a_block_has_at_least_one_token() -> None:
    with pytest.raises(InvalidRequestError, match="block_tokens is 0"):
        block_hashes([1], 0)
