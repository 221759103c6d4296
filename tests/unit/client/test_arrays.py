"""Behaviour of `kvtier.client.arrays`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from kvtier.client.arrays import rows_of
from kvtier.errors import InvalidRequestError

COUNT, BYTES = 3, 24


def pattern(index: int) -> np.ndarray:
    return np.arange(index, index + BYTES, dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.int64])
@pytest.mark.parametrize("shape", [(COUNT, -1), (-1,), (COUNT, 3, -1)])
def test_one_array_is_viewed_row_by_row(dtype: type[Any], shape: tuple[int, ...]) -> None:
    blocks = np.arange(COUNT * BYTES, dtype=np.uint8).view(dtype).reshape(shape)
    rows = rows_of(blocks, COUNT, BYTES)
    assert isinstance(rows, np.ndarray)
    assert rows.shape == (COUNT, BYTES)
    assert rows.reshape(-1).tolist() == list(range(COUNT * BYTES))
    assert np.shares_memory(rows, blocks)


def test_one_array_a_block_is_viewed_each() -> None:
    blocks = [pattern(index).view(np.float32).reshape(2, 3) for index in range(COUNT)]
    rows = rows_of(blocks, COUNT, BYTES)
    assert isinstance(rows, list)
    for index, row in enumerate(rows):
        assert np.array_equal(row, pattern(index))
        assert np.shares_memory(row, blocks[index])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_buffers_are_arrays_of_bytes(kind: type[Any]) -> None:
    rows = rows_of(kind(bytes(range(COUNT * BYTES))), COUNT, BYTES)
    assert isinstance(rows, np.ndarray)
    assert rows.shape == (COUNT, BYTES)


def test_what_is_written_to_rows_is_in_the_callers_array() -> None:
    blocks = np.zeros((COUNT, BYTES // 4), np.float32)
    rows = rows_of(blocks, COUNT, BYTES)
    rows[1][:] = pattern(1)
    assert np.array_equal(blocks[1], pattern(1).view(np.float32))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "uint8", "bool"])
def test_tensors_are_viewed_without_a_copy(name: str) -> None:
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    blocks = torch.zeros(COUNT, BYTES // dtype.itemsize, dtype=dtype)
    rows = rows_of(blocks, COUNT, BYTES)
    rows[2][:] = 1
    assert blocks[2].view(torch.uint8).tolist() == [1] * BYTES
    [row, *_] = rows_of([*blocks], COUNT, BYTES)
    assert row.ctypes.data == blocks.data_ptr()


def test_a_tensor_with_a_gradient_is_viewed() -> None:
    torch = pytest.importorskip("torch")
    blocks = torch.zeros(COUNT, BYTES // 4, requires_grad=True)
    assert rows_of(blocks, COUNT, BYTES)[0].ctypes.data == blocks.data_ptr()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            np.zeros(COUNT * BYTES + 1, np.uint8),
            "blocks has 73 bytes; 3 blocks of 24 bytes need 72",
        ),
        (np.zeros((COUNT, BYTES), np.uint16), "blocks has 144 bytes"),
        ([np.zeros(BYTES, np.uint8)] * 2, "blocks has 2 arrays for 3 keys"),
        ([np.zeros(BYTES, np.uint8)] * 2 + [np.zeros(1, np.uint8)], r"blocks\[2\] has 1 bytes"),
        (bytes(10), "blocks has 10 bytes"),
    ],
)
def test_wrong_sizes_are_named(blocks: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        rows_of(blocks, COUNT, BYTES)


@pytest.mark.parametrize(
    "blocks",
    [
        np.zeros((COUNT, 2 * BYTES), np.uint8)[:, ::2],
        np.zeros((BYTES, COUNT), np.uint8).T,
        [np.zeros(2 * BYTES, np.uint8)[::2]] * COUNT,
        memoryview(bytes(2 * COUNT * BYTES))[::2],
    ],
    ids=["strided", "transposed", "one each", "memoryview"],
)
def test_memory_that_is_not_contiguous_is_refused(blocks: Any) -> None:
    with pytest.raises(InvalidRequestError, match="contiguous"):
        rows_of(blocks, COUNT, BYTES)


def test_a_tensor_that_is_not_contiguous_is_refused() -> None:
    torch = pytest.importorskip("torch")
    for blocks in (torch.zeros(BYTES, COUNT, dtype=torch.uint8).T, torch.zeros(3, device="meta")):
        with pytest.raises(InvalidRequestError, match="a tensor must be contiguous and on the CPU"):
            rows_of(blocks, COUNT, BYTES)


def test_torch_is_not_imported_for_arrays() -> None:
    program = """
import sys, numpy
from kvtier.client.arrays import rows_of
rows_of(numpy.zeros(8, numpy.uint8), 2, 4)
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
