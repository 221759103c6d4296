"""What names a prefix, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvtier.cli.prefix import Prefix
from kvtier.cli.token_hashes import tokenized
from kvtier.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hashes": ["ab"], "tokens": "x"}, "name the blocks in one way"),
        ({"request": "a", "text": "x", "tokenizer": Path("t")}, "name the blocks in one way"),
        ({"text": "x"}, "--text and --tokenizer go together"),
        ({"tokens": "x", "tokenizer": Path("t")}, "--text and --tokenizer go together"),
        ({"hashes": ["ab"], "block_tokens": 16}, "--block-tokens, --extra and --hash-seed go with"),
        ({"request": "a", "hash_seed": "0"}, "--block-tokens, --extra and --hash-seed go with"),
        ({"group": 0}, "--group and --shard go with"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        Prefix(**options)


def test_nothing_named_is_told_from_something() -> None:
    assert not Prefix().is_given
    assert not Prefix(hashes=[]).is_given
    assert Prefix(request="a", shard=1).required().is_given
    with pytest.raises(InvalidRequestError, match="name the blocks, by hashes, --request"):
        Prefix().required()


def test_a_tokenizer_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a b")
    with pytest.raises(InvalidRequestError, match=r"there is no .*tokenizer\.json"):
        tokenized(str(tmp_path / "text"), tmp_path, special_tokens=True)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidRequestError, match=r"--tokenizer .*: no tokenizer"):
        tokenized(str(tmp_path / "text"), tmp_path, special_tokens=True)
    with pytest.raises(InvalidRequestError, match=r"--text .*: No such file"):
        tokenized(str(tmp_path / "none"), tmp_path, special_tokens=True)
