"""Numbers of 16 bits within compiled loops, which know none: bfloat16 as uint16, half precision as int16.

`as_floats` turns what a loop reads of a matrix into floats, a vector of them at a time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

_ELEMENTS = {types.float32: ir.FloatType(), types.uint16: ir.IntType(16), types.int16: ir.HalfType()}
_SHIFT = 16


def element_of(kind: Any) -> Any:
    """Return what a matrix of float32, uint16 or int16 holds."""
    return _ELEMENTS[kind]


def as_floats(builder: Any, kind: Any, vector: Any, lanes: int) -> Any:
    """Return a vector of a matrix's numbers as floats: uint16 is bfloat16, int16 half precision."""
    floats = ir.VectorType(ir.FloatType(), lanes)
    if kind == types.float32:
        return vector
    if kind == types.uint16:
        words = ir.VectorType(ir.IntType(32), lanes)
        bits = builder.shl(builder.zext(vector, words), ir.Constant(words, [_SHIFT] * lanes))
        return builder.bitcast(bits, floats)
    return builder.fpext(vector, floats)
