"""Blocks of matrix products in vector instructions, for compiled loops (docs/adr/0024).

Several rows of a matrix at once, which need fewer loads than one, are not what the processor fetches ahead by
itself: each pass over a few rows asks for what lies `_AHEAD_BYTES` further on. A sequence's sums are
made in the same order whatever other sequences are computed with it, so that they are equal to the last bit.

Shape letters: M sequences, R rows and C columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from workers.models.halves import as_floats, element_of

ROWS = 4
"""Rows of a matrix that a block takes at once."""
_AHEAD_BYTES = 8192
_LINE_BYTES = 64
_FLOAT, _WORD, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_EXPONENTIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
"""Factors of x^7 down to x^2, nearly."""


def _lanes() -> int:
    """Return how many floats one register of this processor holds."""
    features = binding.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx") else 4


LANES = _lanes()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)


def dots(count: int, *, rows: int = ROWS) -> Any:
    """Return a compiled call `(matrix [R, C], r, given [M, C], m, out [M, R])`.

    It sets what the matrix's rows from r on give with the `count` (1, 2 or 4) sequences from m on.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0].dtype
        (matrix, columns), (given, _), (out, outputs) = _planes(
            context, builder, signature, values, places=(0, 2, 4)
        )
        weights = [_row(builder, matrix, columns, values[1], k) for k in range(rows)]
        inputs = [_row(builder, given, columns, values[3], k) for k in range(count)]
        sums = [[cgutils.alloca_once_value(builder, _ZERO) for _ in range(rows)] for _ in range(count)]
        for cell in (cell for of_one in sums for cell in of_one):
            builder.store(_ZERO, cell)

        def step(place: Any, mask: Any) -> None:
            taken = [_load(builder, types.float32, row, place, mask) for row in inputs]
            for k, weight in enumerate(weights):
                wide = _load(builder, kind, weight, place, mask)
                for of_one, value in zip(sums, taken, strict=True):
                    builder.store(_multiply_add(builder, wide, value, builder.load(of_one[k])), of_one[k])

        _each(builder, columns, step, ahead=_ahead(builder, kind, weights))
        totals = _totals(builder, [builder.load(cell) for of_one in sums for cell in of_one])
        for k in range(count):
            place = builder.add(builder.mul(builder.add(values[3], _long(k)), outputs), values[1])
            _store_part(builder, totals, k * rows, rows, builder.gep(out, [place]))
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def block(typing: Any, matrix: Any, r: Any, given: Any, m: Any, out: Any) -> Any:
        return types.void(matrix, types.int64, given, types.int64, out), generate

    return block


def shares(count: int, *, rows: int = ROWS) -> Any:
    """Return a compiled call `(matrix [R, C], r, given [M, R], m, out [M, C], first, end)`.

    It adds what the rows of the matrix from r on, each times its number in `given`, give to the `count`
    sequences from m on, in the columns [first, end). Few sequences are expected to take whole rows in turn,
    four a part of the columns that leaves their outputs in the nearest cache, so that the next rows follow.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0].dtype
        (matrix, columns), (given, inputs), (out, _) = _planes(
            context, builder, signature, values, places=(0, 2, 4)
        )
        weights = [_row(builder, matrix, columns, values[1], k) for k in range(rows)]
        outs = [_row(builder, out, columns, values[3], k) for k in range(count)]
        factors = []
        for j in range(count):
            own = builder.gep(_row(builder, given, inputs, values[3], j), [values[1]])
            factors.append(
                [_spread(builder, builder.load(builder.gep(own, [_long(k)]))) for k in range(rows)]
            )

        def step(place: Any, mask: Any) -> None:
            wide = [_load(builder, kind, weight, place, mask) for weight in weights]
            for row, own in zip(outs, factors, strict=True):
                total = _load(builder, types.float32, row, place, mask)
                for weight, factor in zip(wide, own, strict=True):
                    total = _multiply_add(builder, weight, factor, total)
                _store(builder, total, row, place, mask)

        if count < ROWS:
            ahead = _ahead(builder, kind, weights)
        else:
            ahead = _ahead_below(
                builder, [builder.gep(row, [builder.mul(columns, _long(rows))]) for row in weights]
            )
        _each(builder, values[6], step, ahead=ahead, first=values[5])
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def block(typing: Any, matrix: Any, r: Any, given: Any, m: Any, out: Any, first: Any, end: Any) -> Any:
        integer = types.int64
        return types.void(matrix, integer, given, integer, out, integer, integer), generate

    return block


@intrinsic  # type: ignore[untyped-decorator]
def exponential(typing: Any, value: Any) -> Any:
    """Return e to the power of a float, within 2e-7 of it, as loops of it become vector instructions.

    From 88 on it is what it is there, below -87 likewise; NaN stays NaN. By two's powers and a polynomial of
    the rest, Cephes' expf.
    """

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        x = _clipped(builder, values[0])
        halves = builder.fadd(builder.fmul(x, _number(1.44269504088896341)), _number(0.5))
        twos = _call(builder, "llvm.floor.f32", _FLOAT, (halves,))
        rest = _multiply_add(builder, twos, _number(-0.693359375), x)
        rest = _multiply_add(builder, twos, _number(2.12194440e-4), rest)
        total = _number(_EXPONENTIAL[0])
        for factor in (*_EXPONENTIAL[1:], 1.0, 1.0):
            total = _multiply_add(builder, total, rest, _number(factor))
        whole = builder.select(builder.fcmp_ordered("ord", x, x), twos, _number(0.0))
        exponent = builder.add(builder.fptosi(whole, _WORD), _word(127))
        power = builder.bitcast(builder.shl(exponent, _word(23)), _FLOAT)
        return builder.fmul(total, power)

    return types.float32(types.float32), generate


def _clipped(builder: Any, value: Any) -> Any:
    """Return a float within what `exponential` has a power of two for; NaN as it is."""
    low, high = _number(-87.0), _number(88.0)
    value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
    return builder.select(builder.fcmp_ordered(">", value, high), high, value)


def _number(value: float) -> Any:
    return ir.Constant(_FLOAT, value)


def _each(
    builder: Any,
    end: Any,
    step: Callable[[Any, Any], None],
    *,
    ahead: Callable[[Any], None],
    first: Any = None,
) -> None:
    """Take the columns from the first to the end a vector at a time, the last ones with a mask."""
    first = _long(0) if first is None else first
    whole = builder.add(first, builder.and_(builder.sub(end, first), _long(-LANES)))
    with cgutils.for_range_slice(builder, first, whole, _long(LANES), _LONG) as (place, _):
        step(place, None)
        ahead(place)
    left = builder.sub(end, whole)
    with builder.if_then(builder.icmp_signed(">", left, _long(0)), likely=False):
        places = ir.VectorType(_LONG, LANES)
        mask = builder.icmp_signed(
            "<", ir.Constant(places, list(range(LANES))), _spread(builder, left, places)
        )
        step(whole, mask)


def _ahead(builder: Any, kind: Any, weights: Sequence[Any]) -> Callable[[Any], None]:
    """Return what fetches, for each place of a pass, a part of what the pass after it reads."""
    pace = len(weights) * (types.float32.bitwidth if kind == types.float32 else types.int16.bitwidth) // 8
    start = builder.gep(builder.bitcast(weights[0], _BYTES), [_long(_AHEAD_BYTES)])

    def fetch(place: Any) -> None:
        here = builder.gep(start, [builder.mul(place, _long(pace))])
        for line in range(max(1, pace * LANES // _LINE_BYTES)):
            _fetch(builder, builder.gep(here, [_long(line * _LINE_BYTES)]))

    return fetch


def _ahead_below(builder: Any, rows: Sequence[Any]) -> Callable[[Any], None]:
    """Return what fetches, for each place of a pass, what these rows have there."""

    def fetch(place: Any) -> None:
        for row in rows:
            _fetch(builder, builder.bitcast(builder.gep(row, [place]), _BYTES))

    return fetch


def _fetch(builder: Any, pointer: Any) -> None:
    """Ask for the line at a pointer: to read, to be kept in all caches, data."""
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), (pointer, *map(_word, (0, 3, 1))))


def _totals(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """Return vectors that hold the sums of the lanes of each given one, in their order.

    Lanes are added to those half a group further on, so that the order within a sum is always the same.
    """
    group = LANES
    while group > 1:
        half = group // 2
        firsts = [
            start + place
            for of in (0, LANES)
            for start in range(of, of + LANES, group)
            for place in range(half)
        ]
        low, high = (_places(of) for of in (firsts, [place + half for place in firsts]))
        pairs = (
            list(zip(vectors[::2], vectors[1::2], strict=True)) if len(vectors) > 1 else [(vectors[0],) * 2]
        )
        vectors = [
            builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))
            for a, b in pairs
        ]
        group = half
    return list(vectors)


def _store_part(builder: Any, totals: Sequence[Any], first: int, count: int, pointer: Any) -> None:
    """Write `count` of the sums from the first one on."""
    part = ir.VectorType(_FLOAT, count)
    whole, place = totals[first // LANES], first % LANES
    taken = builder.shuffle_vector(whole, whole, _places([place + k for k in range(count)]))
    builder.store(taken, builder.bitcast(pointer, part.as_pointer()), align=4)


def _planes(
    context: Any, builder: Any, signature: Any, values: Any, *, places: Sequence[int]
) -> list[tuple[Any, Any]]:
    """Return the memory of arguments that are arrays of two dimensions, and how long their rows are."""
    found = []
    for place in places:
        kind = signature.args[place]
        array = context.make_array(kind)(context, builder, values[place])
        memory = builder.bitcast(array.data, element_of(kind.dtype).as_pointer())
        found.append((memory, cgutils.unpack_tuple(builder, array.shape, 2)[1]))
    return found


def _row(builder: Any, memory: Any, columns: Any, first: Any, number: int) -> Any:
    return builder.gep(memory, [builder.mul(builder.add(first, _long(number)), columns)])


def _load(builder: Any, kind: Any, row: Any, place: Any, mask: Any) -> Any:
    """Return a vector of floats from a row, from a place on; what is masked is zero."""
    vector = ir.VectorType(element_of(kind), LANES)
    pointer = builder.bitcast(builder.gep(row, [place]), vector.as_pointer())
    align = 4 if kind == types.float32 else 2
    if mask is None:
        return as_floats(builder, kind, builder.load(pointer, align=align), LANES)
    element = {types.float32: "f32", types.uint16: "i16"}.get(kind, "f16")
    name = f"llvm.masked.load.v{LANES}{element}.p0"
    arguments = (pointer, _word(align), mask, ir.Constant(vector, None))
    return as_floats(builder, kind, _call(builder, name, vector, arguments), LANES)


def _store(builder: Any, vector: Any, row: Any, place: Any, mask: Any) -> None:
    pointer = builder.bitcast(builder.gep(row, [place]), _VECTOR.as_pointer())
    if mask is None:
        builder.store(vector, pointer, align=4)
        return
    name = f"llvm.masked.store.v{LANES}f32.p0"
    _call(builder, name, ir.VoidType(), (vector, pointer, _word(4), mask))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a b + c, in one instruction where the processor has it."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def _spread(builder: Any, value: Any, vector: Any = _VECTOR) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(nothing, value, _word(0)), nothing, _places([0] * LANES)
    )


def _places(places: Sequence[int]) -> Any:
    return ir.Constant(ir.VectorType(_WORD, len(places)), list(places))


def _call(builder: Any, name: str, returned: Any, arguments: Sequence[Any]) -> Any:
    kind = ir.FunctionType(returned, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _word(value: int) -> Any:
    return ir.Constant(_WORD, value)


def _long(value: int) -> Any:
    return ir.Constant(_LONG, value)
