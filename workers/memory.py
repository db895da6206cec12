"""Memory for arrays that begins at a cache line. No torch.

A vector of 64 bytes that lies across two lines is read twice: products with a matrix that is not aligned take
up to half as long again.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

LINE_BYTES = 64
_UNREFERENCED = 2  # the list and the call that counts
Block = np.ndarray[Any, np.dtype[np.uint8]]


class Kept:
    """Memory of one large size: from the second of it on, what nobody holds any more is used again.

    Fresh memory costs as much as receiving into it, since the kernel clears it first. Not thread-safe.
    """

    def __init__(self, *, most: int) -> None:
        """Keep up to `most` pieces."""
        self._most = most
        self._last_size = -1
        self._kept: list[Block] = []

    def get(self, size_bytes: int) -> Block:
        """Give writable memory that nothing else refers to; raises MemoryError."""
        repeated, self._last_size = size_bytes == self._last_size, size_bytes
        if not repeated:
            self._kept.clear()
        for index in range(len(self._kept)):
            if sys.getrefcount(self._kept[index]) == _UNREFERENCED:
                return aligned(self._kept[index], size_bytes)
        made = block(size_bytes)
        if repeated and len(self._kept) < self._most:
            self._kept.append(made)
        return aligned(made, size_bytes)


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
