"""The block hashes of a file of tokens, as the workers of a namespace make them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvtier.errors import ConfigError, InvalidRequestError
from kvtier.hashing import ALGORITHM, block_hashes

if TYPE_CHECKING:
    from kvtier.v1.block_pb2 import NamespaceSpec

_VLLM: Final = "vllm-"


def read_tokens(path: str) -> list[int]:
    """Token ids from a file, `-` for standard input: a JSON list, or numbers with white space.

    Raises InvalidRequestError for anything else.
    """
    text = _read("--tokens", path)
    tokens = _json_list(path, text) if text.lstrip()[:1] in ("[", "{") else text.split()
    wrong = next((token for token in tokens if not str(token).isdecimal()), None)
    if wrong is not None:
        raise InvalidRequestError(f"--tokens {path}: {str(wrong)[:40]!r} is no token id")
    return [int(str(token)) for token in tokens]


def tokenized(path: str, tokenizer: Path, *, special_tokens: bool) -> list[int]:
    """Token ids of a text file, `-` for standard input; no chat template is applied.

    Raises InvalidRequestError for what cannot be read, ConfigError without the package tokenizers.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(
            "--tokenizer needs the package tokenizers: pip install tokenizers"
        ) from error
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not file.is_file():
        raise InvalidRequestError(f"--tokenizer {tokenizer}: there is no {file}")
    text = _read("--text", path)
    try:
        model = Tokenizer.from_file(str(file))
    except Exception as error:  # what it raises is a plain Exception
        raise InvalidRequestError(f"--tokenizer {file}: no tokenizer: {error}") from error
    ids: list[int] = model.encode(text, add_special_tokens=special_tokens).ids
    return ids


def _read(option: str, path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8", newline="") as file:  # every byte counts
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InvalidRequestError(f"{option} {path}: {reason}") from error


def _json_list(path: str, text: str) -> list[object]:
    try:
        tokens = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"--tokens {path}: no JSON: {error}") from error
    if not isinstance(tokens, list):
        raise InvalidRequestError(f"--tokens {path}: write a list of token ids")
    return tokens


def hashes_of(
    spec: NamespaceSpec, tokens: Sequence[int], block_tokens: int, extra: str, hash_seed: str | None
) -> list[bytes]:
    """One for each full block of `block_tokens`.

    `extra` is that of `kvtier.hashing`, and `hash_seed` what vLLM's PYTHONHASHSEED was. Raises
    InvalidRequestError for hashes that only the engine can compute.
    """
    algorithm = spec.hash_algorithm
    if algorithm == ALGORITHM:
        return block_hashes(tokens, block_tokens, extra=extra.encode())
    if extra:
        raise InvalidRequestError(f"--extra: hashes of {algorithm or 'this engine'} have none")
    if algorithm.startswith(_VLLM):
        from kvtier.cli.vllm_hashes import vllm_hashes

        return vllm_hashes(spec, tokens, block_tokens, hash_seed)
    raise InvalidRequestError(
        f"--tokens: the namespace's hashes are {algorithm or 'of an unnamed kind'}; "
        f"those of {ALGORITHM} and of vLLM can be computed. Give the hashes themselves"
    )
