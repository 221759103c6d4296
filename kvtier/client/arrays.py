"""Callers' arrays and tensors as bytes, without copying."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvtier.errors import InvalidRequestError

#: One array of [blocks, block_bytes], or one array for each block; or tensors on a device.
Rows = Any


def rows_of(blocks: Any, count: int, block_bytes: int, device: Any = None) -> Rows:
    """The bytes of `count` blocks, as views of what the caller passed.

    `blocks` is one contiguous array or CPU tensor of any type that holds all of them, or a sequence
    with one for each block; tensors may be on the `device` too. Raises InvalidRequestError if sizes
    differ or memory is not contiguous.
    """
    if isinstance(blocks, Sequence) and not isinstance(blocks, (bytes, bytearray, memoryview)):
        if len(blocks) != count:
            raise InvalidRequestError(f"blocks has {len(blocks)} arrays for {count} keys")
        rows = [_bytes_of(each, device) for each in blocks]
        for index, row in enumerate(rows):
            if len(row) != block_bytes:
                raise InvalidRequestError(
                    f"blocks[{index}] has {len(row)} bytes; a block of this namespace has "
                    f"{block_bytes}"
                )
        return rows
    whole = _bytes_of(blocks, device)
    if len(whole) != count * block_bytes:
        raise InvalidRequestError(
            f"blocks has {len(whole)} bytes; {count} blocks of {block_bytes} bytes need "
            f"{count * block_bytes}"
        )
    return whole.reshape(count, block_bytes)


def is_read_only(rows: Rows) -> bool:
    """Whether some of it cannot be written to; tensors can."""
    return not all(row.flags.writeable for row in rows if isinstance(row, np.ndarray))


def _bytes_of(value: Any, device: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        is_here = value.device.type == "cpu"
        if not (is_here or value.device == device) or not value.is_contiguous():
            place = "on the CPU" if device is None else f"on the CPU or {device}"
            raise InvalidRequestError(
                f"a tensor must be contiguous and {place}; this one is on {value.device}, "
                f"strides {value.stride()}"
            )
        value = value.detach().reshape(-1).view(torch.uint8)
        if not is_here:
            return value
        value = value.numpy()
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
