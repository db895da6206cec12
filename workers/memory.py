"""Memory for arrays that begins at a cache line. No torch.

A vector of 64 bytes that lies across two lines is read twice: products with a matrix that is not aligned take
up to half as long again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LINE_BYTES = 64
Block = np.ndarray[Any, np.dtype[np.uint8]]


def block(size_bytes: int) -> Block:
    """Return memory in which `aligned` finds room for `size_bytes`; raises MemoryError."""
    return np.empty(size_bytes + LINE_BYTES, dtype=np.uint8)


def aligned(
    memory: np.ndarray[Any, np.dtype[np.uint8]], size_bytes: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the first `size_bytes` of a `block` that begin at a line; they keep it, and it alone, alive."""
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + size_bytes]


def empty(shape: tuple[int, ...], dtype: np.dtype[Any] | type = np.float32) -> np.ndarray[Any, np.dtype[Any]]:
    """Return an array as `np.empty` does, aligned; raises MemoryError."""
    kind = np.dtype(dtype)
    size_bytes = math.prod(shape) * kind.itemsize
    return aligned(block(size_bytes), size_bytes).view(kind).reshape(shape)
