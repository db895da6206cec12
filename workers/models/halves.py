"""Numbers of 16 bits within compiled loops, which know none: bfloat16 as uint16, half precision as int16.

`widen` turns what a loop reads of a matrix into a float, by instructions that the compiler makes vectors of.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_FLOAT, _HALF, _WORD = ir.FloatType(), ir.HalfType(), ir.IntType(32)


@intrinsic  # type: ignore[untyped-decorator]
def widen(typing: Any, value: Any) -> Any:
    """Return a matrix's number as a float: float32 as it is, uint16 as bfloat16, int16 as half precision."""
    if value == types.float32:
        return types.float32(value), lambda _context, _builder, _signature, given: given[0]
    if value == types.uint16:

        def of_bfloat16(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            bits = builder.shl(builder.zext(given[0], _WORD), ir.Constant(_WORD, 16))
            return builder.bitcast(bits, _FLOAT)

        return types.float32(value), of_bfloat16
    if value == types.int16:

        def of_half(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            return builder.fpext(builder.bitcast(given[0], _HALF), _FLOAT)

        return types.float32(value), of_half
    return None
