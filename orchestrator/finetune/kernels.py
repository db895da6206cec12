"""Compiled loops over updates and their sum: one pass over memory each, without the interpreter's lock.

A sum is kept in two planes, which need fewer bytes than whole 64-bit integers would: `low` has the last 32
bits of each value, `high` what is above them, in as many bits as the values so far took.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workers.compiling import compiled

Array = np.ndarray[Any, Any]

# A double between 2^k and 2^(k+1) has its last bit at 2^(k-52). What is added to 1.5 * 2^k is so rounded to
# a multiple of that, half to even, and the bits of the result, read as an integer, count those multiples:
# integers whose sum is exact. |factor * value| < 2^10 stays within the binade of 1.5 * 2^11.
RESOLUTION = 2.0**-41
_ANCHOR = 1.5 * 2.0**11
_ANCHOR_BITS = int(np.float64(_ANCHOR).view(np.int64))
_LOW = 0xFFFFFFFF


@compiled()
def within(values: Array, limit: float) -> bool:
    """Tell whether all values are numbers from -limit to limit."""
    wrong = np.int32(0)
    for i in range(values.shape[0]):
        wrong |= np.int32(not (abs(values[i]) <= limit))
    return bool(wrong == 0)


@compiled()
def add(low: Array, high: Array, values: Array, factor: float) -> bool:
    """Add factor * values, each rounded to RESOLUTION; tells whether all sums have room in `high`.

    What has no room is lost from the top: adding -factor * values brings the sums before back, bit by bit.
    """
    lost = np.int64(0)
    for i in range(values.shape[0]):
        count = np.float64(np.float64(values[i]) * factor + _ANCHOR).view(np.int64) - _ANCHOR_BITS
        total = (np.int64(high[i]) << 32) + np.int64(low[i]) + count
        low[i] = np.uint32(total & _LOW)
        high[i] = total >> 32
        lost |= (total >> 32) ^ np.int64(high[i])
    return bool(lost == 0)


@compiled()
def apply(low: Array, high: Array, base: Array, factor: float) -> None:
    """Put base + factor * sum, in fp32, where `low` was (its bits: the type stays)."""
    for i in range(base.shape[0]):
        total = (np.int64(high[i]) << 32) | np.int64(low[i])
        low[i] = np.float32(np.float64(total) * factor + np.float64(base[i])).view(np.uint32)
