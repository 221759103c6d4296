"""A tokenizer that needs no vocabulary file."""

from __future__ import annotations

#: Token ids below this are free for special tokens.
_OFFSET = 4


class ByteTokenizer:
    """One token for each byte of the text in UTF-8."""

    vocabulary_size = 256 + _OFFSET

    def encode(self, text: str) -> list[int]:
        return [byte + _OFFSET for byte in text.encode()]
