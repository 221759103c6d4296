"""How the bytes of a block are stored in the cluster: docs/cluster-format.md. No I/O.

Lossless. The work is done by calls that release the GIL.
"""

from __future__ import annotations

from enum import IntEnum

import lz4.block  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_PAIR = np.dtype("<u2")


class Codec(IntEnum):
    """What the stored bytes are (numbers as in the header)."""

    NONE = 0
    PLANES_LZ4 = 1


class CodecError(Exception):
    """The stored bytes are not what the codec makes of a block of this length."""


def encode(payload: Bytes, codec: Codec) -> tuple[Codec, Bytes]:
    """The codec that was used and the stored bytes, never more than the payload's.

    With NONE, also where coding would save nothing, they are the payload itself, not a copy. Else
    they are new, and cost up to twice the payload's memory while they are made. The payload is
    one-dimensional and contiguous, and does not change meanwhile.
    """
    if codec is Codec.NONE or len(payload) < 2:
        return Codec.NONE, payload
    high_bytes = len(payload) // 2
    low_bytes = len(payload) - high_bytes
    stored = np.empty(len(payload), np.uint8)
    high = np.empty(high_bytes, np.uint8)
    pairs = payload[: 2 * high_bytes].view(_PAIR)
    np.copyto(stored[:high_bytes], pairs, casting="unsafe")  # the lower 8 bits of each
    np.right_shift(pairs, 8, out=high, casting="unsafe")
    if low_bytes > high_bytes:
        stored[high_bytes] = payload[-1]
    packed = np.frombuffer(lz4.block.compress(high, store_size=False), np.uint8)
    if len(packed) >= high_bytes:
        return Codec.NONE, payload
    end = low_bytes + len(packed)
    stored[low_bytes:end] = packed
    return codec, stored[:end]


def decode(stored: Bytes, codec: Codec, out: Bytes) -> None:
    """Fills `out`, which is exactly as long as the block; raises CodecError.

    Takes memory of half the block at most, whatever is stored. After an error `out` may hold
    anything. It shares no memory with `stored`, but with NONE they may be the same.
    """
    if codec is Codec.NONE:
        if len(stored) != len(out):
            raise CodecError(f"{len(stored)} stored bytes for a block of {len(out)}")
        np.copyto(out, stored)
        return
    high_bytes = len(out) // 2
    low_bytes = len(out) - high_bytes
    if not low_bytes < len(stored) < len(out):
        raise CodecError(f"{len(stored)} stored bytes do not decode to {len(out)}")
    high = _unpacked(stored[low_bytes:], high_bytes)
    pairs = out[: 2 * high_bytes].view(_PAIR)
    np.copyto(pairs, high)
    np.left_shift(pairs, 8, out=pairs)
    np.bitwise_or(pairs, stored[:high_bytes], out=pairs)
    if low_bytes > high_bytes:
        out[-1] = stored[high_bytes]


def _unpacked(packed: Bytes, size_bytes: int) -> Bytes:
    """An lz4 block of exactly this many bytes; lz4 writes no more than that."""
    try:
        data = lz4.block.decompress(packed, uncompressed_size=size_bytes)
    except lz4.block.LZ4BlockError as error:
        raise CodecError(f"the high plane does not decompress: {error}") from None
    if len(data) != size_bytes:
        raise CodecError(f"the high plane has {len(data)} bytes; it must have {size_bytes}")
    return np.frombuffer(data, np.uint8)
