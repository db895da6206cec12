"""Compiled arithmetic of decoding: one new row of each of a few sequences through a layer, on one core.

A matrix-vector product is bound by reading the matrix, and torch's reads it at less than half of what the
memory gives (docs/adr/0018). Here a matrix is read once, as the model's folder has it, a few rows at a time
(`vectors`); nothing is copied or packed. The interpreter's lock is not held, so that receiving and sending go
on meanwhile.

Sums may be reordered (`reassoc`), which changes the last bits as any other BLAS would; infinities and NaNs
stay. A bias that a family does not have is given as an array of no length.

Shape letters: M sequences, H hidden, N query heads, K key/value heads, G = N / K, D head size, F
feed-forward, S cached rows, R rows and C columns of a matrix, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workers.compiling import compiled
from workers.models import vectors

Array = np.ndarray[Any, Any]
_compiled = compiled("reassoc", "contract", "arcp", "nsz")
_ZERO = np.float32(0)
_ONE = np.float32(1)
_TOGETHER = vectors.ROWS
_BLOCK_BYTES = 1 << 17
"""Of a matrix that the second four of more sequences are to find in a core's own cache."""
_PART_COLUMNS = 1024
"""Of a matrix stored transposed, whose outputs for several sequences are to stay in the nearest cache."""
_GELU_CUBE = np.float32(0.044715)
_GELU_SCALE = np.float32(2 * math.sqrt(2 / math.pi))
"""0.5 (1 + tanh(x)) is 1 / (1 + exp(-2 x))."""


_dots_of_4, _dots_of_2, _dots_of_1 = (vectors.dots(count) for count in (4, 2, 1))
_dot_of_4, _dot_of_2, _dot_of_1 = (vectors.dots(count, rows=1) for count in (4, 2, 1))
_shares_of_4, _shares_of_2, _shares_of_1 = (vectors.shares(count) for count in (4, 2, 1))
_share_of_1 = vectors.shares(1, rows=1)


@_compiled
def multiply(matrix: Array, rows: Array, out: Array) -> None:
    """Set out [M, R] to rows [M, C] times the transpose of matrix [R, C].

    Four sequences at a time, over so many rows of the matrix that the next four find them in a core's cache.
    """
    count, outputs = rows.shape[0], matrix.shape[0]
    step = max(_TOGETHER, _BLOCK_BYTES // (matrix.itemsize * matrix.shape[1]) // _TOGETHER * _TOGETHER)
    for start in range(0, outputs, step):
        end = min(outputs, start + step)
        even, done = end - (end - start) % _TOGETHER, 0
        while count - done >= 4:
            for r in range(start, even, _TOGETHER):
                _dots_of_4(matrix, r, rows, done, out)
            for r in range(even, end):
                _dot_of_4(matrix, r, rows, done, out)
            done += 4
        if count - done >= 2:
            for r in range(start, even, _TOGETHER):
                _dots_of_2(matrix, r, rows, done, out)
            for r in range(even, end):
                _dot_of_2(matrix, r, rows, done, out)
            done += 2
        if done < count:
            for r in range(start, even, _TOGETHER):
                _dots_of_1(matrix, r, rows, done, out)
            for r in range(even, end):
                _dot_of_1(matrix, r, rows, done, out)


@_compiled
def _add_whole_shares(matrix: Array, rows: Array, out: Array) -> None:
    """Do as `add_shares` does for at most three sequences: in whole rows of the matrix.

    Columns that the compiler knows to begin at 0 take 4 to 10 % less time than those of a part.
    """
    count, inputs, outputs = rows.shape[0], matrix.shape[0], matrix.shape[1]
    even = inputs - inputs % _TOGETHER
    for r in range(0, even, _TOGETHER):
        if count >= 2:
            _shares_of_2(matrix, r, rows, 0, out, 0, outputs)
        if count % 2:
            _shares_of_1(matrix, r, rows, count - 1, out, 0, outputs)
    for r in range(even, inputs):
        for m in range(count):
            _share_of_1(matrix, r, rows, m, out, 0, outputs)


@_compiled
def add_shares(matrix: Array, rows: Array, out: Array) -> None:
    """Add to out [M, C] rows [M, R] times matrix [R, C]."""
    if rows.shape[0] < _TOGETHER:
        _add_whole_shares(matrix, rows, out)
        return
    count, inputs, outputs = rows.shape[0], matrix.shape[0], matrix.shape[1]
    even = inputs - inputs % _TOGETHER
    for first in range(0, outputs, _PART_COLUMNS):
        end = min(outputs, first + _PART_COLUMNS)
        for r in range(0, even, _TOGETHER):
            done = 0
            while count - done >= 4:
                _shares_of_4(matrix, r, rows, done, out, first, end)
                done += 4
            if count - done >= 2:
                _shares_of_2(matrix, r, rows, done, out, first, end)
                done += 2
            if done < count:
                _shares_of_1(matrix, r, rows, done, out, first, end)
        for r in range(even, inputs):
            for m in range(count):
                _share_of_1(matrix, r, rows, m, out, first, end)


@_compiled
def multiply_stored_transposed(matrix: Array, rows: Array, bias: Array, out: Array) -> None:
    """Set out [M, C] to bias [C] plus rows [M, R] times matrix [R, C]."""
    for m in range(rows.shape[0]):
        for i in range(bias.shape[0]):
            out[m, i] = bias[i]
    add_shares(matrix, rows, out)


@_compiled
def normalise(rows: Array, weight: Array, epsilon: float, out: Array) -> None:
    """Set out [M, H] to rows [M, H] scaled to unit root mean square, then by weight [H]."""
    size = rows.shape[1]
    for m in range(rows.shape[0]):
        total = _ZERO
        for i in range(size):
            total += rows[m, i] * rows[m, i]
        scale = np.float32(1.0 / math.sqrt(total / size + epsilon))
        for i in range(size):
            out[m, i] = rows[m, i] * scale * weight[i]


@_compiled
def normalise_centred(rows: Array, weight: Array, bias: Array, epsilon: float, out: Array) -> None:
    """Set out [M, H] to rows [M, H] less their mean, scaled to unit variance, times weight plus bias [H]."""
    size = rows.shape[1]
    for m in range(rows.shape[0]):
        total = _ZERO
        for i in range(size):
            total += rows[m, i]
        mean, spread = total / np.float32(size), _ZERO
        for i in range(size):
            spread += (rows[m, i] - mean) * (rows[m, i] - mean)
        scale = np.float32(1.0 / math.sqrt(spread / size + epsilon))
        for i in range(size):
            out[m, i] = (rows[m, i] - mean) * scale * weight[i] + bias[i]


@_compiled
def add(rows: Array, bias: Array) -> None:
    """Add bias [R] to each of rows [M, R]; one of no length changes nothing."""
    for m in range(rows.shape[0]):
        for i in range(bias.shape[0]):
            rows[m, i] += bias[i]


@_compiled
def add_rows(rows: Array, more: Array) -> None:
    """Add `more` [M, H] to rows [M, H]."""
    for m in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            rows[m, i] += more[m, i]


@_compiled
def normalise_heads(rows: Array, weight: Array, epsilon: float) -> None:
    """Normalise each head of rows [M, heads * D] in place, by weight [D]."""
    heads = rows.reshape(-1, weight.shape[0])
    normalise(heads, weight, epsilon, heads)


@_compiled
def _turn(heads: Array, cos: Array, sin: Array) -> None:
    """Turn the halves of each head, in place: heads [*, D] flat, cos and sin [D]."""
    size = cos.shape[0]
    half = size // 2
    for start in range(0, heads.shape[0], size):
        for i in range(half):
            low, high = heads[start + i], heads[start + half + i]
            heads[start + i] = low * cos[i] - high * sin[i]
            heads[start + half + i] = high * cos[i] + low * sin[i]


@_compiled
def attend(
    queries: Array,
    keys: Array,
    values: Array,
    cos: Array,
    sin: Array,
    cache: Array,
    first: int,
    position: int,
    scores: Array,
    out: Array,
) -> None:
    """Add one sequence's new row to its cache and set out [N * D] to what it attends to.

    queries [N * D], keys and values [K * D] of the row at `position`, not turned yet; cos and sin [D] of the
    position, of no length where nothing is to be turned; cache [2, K, room, D]; rows before `first` are not
    seen; scores: room for G (position + 1) numbers.
    """
    kv_heads, size = cache.shape[1], cache.shape[3]
    group = queries.shape[0] // (kv_heads * size)
    if cos.shape[0]:
        _turn(queries, cos, sin)
        _turn(keys, cos, sin)
    scale = np.float32(1.0 / math.sqrt(size))
    seen = position + 1 - first
    shares = scores[: group * seen].reshape(group, seen)
    for head in range(kv_heads):
        cached_keys, cached_values = cache[0, head], cache[1, head]
        for i in range(size):
            cached_keys[position, i] = keys[head * size + i]
            cached_values[position, i] = values[head * size + i]
        start, end = head * group * size, (head + 1) * group * size
        mixed = out[start:end].reshape(group, size)
        multiply(cached_keys[first : position + 1], queries[start:end].reshape(group, size), shares)
        for member in range(group):
            _soften(shares[member], scale)
        mixed[:] = _ZERO
        add_shares(cached_values[first : position + 1], shares, mixed)


@_compiled
def _soften(scores: Array, scale: np.float32) -> None:
    """Set scores [S] to their softmax, after scaling."""
    highest = np.float32(-np.inf)
    for s in range(scores.shape[0]):
        highest = max(highest, scores[s])
    whole = _ZERO
    for s in range(scores.shape[0]):
        scores[s] = vectors.exponential((scores[s] - highest) * scale)
        whole += scores[s]
    for s in range(scores.shape[0]):
        scores[s] /= whole


@_compiled
def gate(rows: Array, by: Array) -> None:
    """Set rows [M, F] to their SiLU, each times its number in `by`."""
    for m in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            value = rows[m, i]
            rows[m, i] = value / (_ONE + vectors.exponential(-value)) * by[m, i]


@_compiled
def bend(rows: Array) -> None:
    """Set rows [M, F] to their GELU, in the tanh form."""
    for m in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            value = rows[m, i]
            inner = _GELU_SCALE * (value + _GELU_CUBE * value * value * value)
            rows[m, i] = value / (_ONE + vectors.exponential(-inner))


@_compiled
def best(logits: Array) -> tuple[int, float]:
    """Return the place of the greatest of logits [V], and by how much it beats the second.

    That is NaN if any of them is not finite.
    """
    first, second, place, faults = np.float32(-np.inf), np.float32(-np.inf), 0, _ZERO
    for i in range(logits.shape[0]):
        value = logits[i]
        faults += value * _ZERO
        if value > first:
            first, second, place = value, first, i
        elif value > second:
            second = value
    return place, first - second + faults
