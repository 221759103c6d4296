"""Callers' arrays and tensors as bytes, without copying."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvtier.errors import InvalidRequestError
from kvtier.memory import ByteArray

#: One array of [blocks, block_bytes], or one array for each block.
Rows = ByteArray | list[ByteArray]


def rows_of(blocks: Any, count: int, block_bytes: int) -> Rows:
    """The bytes of `count` blocks, as views of what the caller passed.

    `blocks` is one contiguous array or CPU tensor of any type that holds all of them, or a sequence
    with one for each block. Raises InvalidRequestError if sizes differ or memory is not contiguous.
    """
    if isinstance(blocks, Sequence) and not isinstance(blocks, (bytes, bytearray, memoryview)):
        if len(blocks) != count:
            raise InvalidRequestError(f"blocks has {len(blocks)} arrays for {count} keys")
        rows = [_bytes_of(each) for each in blocks]
        for index, row in enumerate(rows):
            if row.size != block_bytes:
                raise InvalidRequestError(
                    f"blocks[{index}] has {row.size} bytes; a block of this namespace has "
                    f"{block_bytes}"
                )
        return rows
    whole = _bytes_of(blocks)
    if whole.size != count * block_bytes:
        raise InvalidRequestError(
            f"blocks has {whole.size} bytes; {count} blocks of {block_bytes} bytes need "
            f"{count * block_bytes}"
        )
    return whole.reshape(count, block_bytes)


def _bytes_of(value: Any) -> ByteArray:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.device.type != "cpu" or not value.is_contiguous():
            raise InvalidRequestError(
                f"a tensor must be contiguous and on the CPU; this one is on {value.device}, "
                f"strides {value.stride()}"
            )
        value = value.detach().reshape(-1).view(torch.uint8).numpy()
    if not isinstance(
        value, np.ndarray | np.generic | memoryview | bytearray | bytes
    ) and not hasattr(value, "__array_interface__"):
        raise InvalidRequestError(
            f"blocks must be arrays, CPU tensors or buffers, not {type(value).__name__}"
        )
    try:
        array = np.asarray(memoryview(value) if isinstance(value, bytearray | bytes) else value)
        if not array.flags.c_contiguous:
            raise BufferError(f"its strides are {array.strides}")
        return array.reshape(-1).view(np.uint8)
    except BufferError as error:
        raise InvalidRequestError(f"an array must be contiguous: {error}") from error
