"""Arrays by their addresses, for compiled calls that would have too many arguments otherwise (docs/adr/0026).

Each argument that is an array costs a microsecond when a call's caches are cold, and a pass through a model
reads a hundred arrays. Here they are fields of records, one record per layer or sequence.

An address keeps nothing alive and knows no bounds: who gives one to a compiled call holds the array until the
call has returned, and has checked its shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from workers.compiling import compiled

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


def record(names: Iterable[str]) -> np.dtype[Any]:
    """Return the type of a record of whole numbers, addresses among them."""
    return np.dtype([(name, np.int64) for name in names])


def address(array: Array) -> int:
    """Return where an array's first number lies."""
    return int(array.ctypes.data)


def shapes(letters: Mapping[str, str], **sizes: int) -> dict[str, Shape]:
    """Return the shapes that are given by a letter for each dimension."""
    return {name: tuple(sizes[letter] for letter in of_one) for name, of_one in letters.items()}


class Parameters:
    """The addresses of the parameters of layers that are all alike; keeps the arrays alive.

    `records` [layers] has a field for each name in `shapes`. A parameter that is None has the address 0.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        layers: Sequence[Mapping[str, Array | None]],
        *,
        held: np.dtype[Any],
        optional: Iterable[str] = (),
    ) -> None:
        """Take each layer's arrays; `held` is what matrices hold, all else holds fp32.

        Raises:
            ValueError: an array is not what it is taken for, or missing though not `optional`.
        """
        self.records = np.zeros(len(layers), dtype=record(shapes))
        self._kept = [dict(layer) for layer in layers]
        for place, layer in enumerate(self._kept):
            for name, shape in shapes.items():
                array = layer[name]
                if array is None and name in optional:
                    continue
                _check(name, array, shape, held if len(shape) > 1 else np.dtype(np.float32))
                self.records[place][name] = address(array)


def _check(name: str, array: Array | None, shape: Shape, held: np.dtype[Any]) -> None:
    if array is None:
        raise ValueError(f"parameter {name} is missing; it must be {held} {list(shape)}")
    if array.shape != shape or array.dtype != held or not array.flags.carray:
        raise ValueError(
            f"parameter {name} is {array.dtype} {list(array.shape)}; it must be {held} {list(shape)}, "
            "in order and aligned"
        )


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing: Any, where: Any) -> Any:
    """Return an address as a pointer."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@compiled()
def vector(where: int, size: int) -> Array:
    """Return the floats [size] at an address; none where that is 0."""
    return carray(_pointer(where), (size if where else 0,), np.float32)


@compiled()
def matrix_at(where: int, rows: int, columns: int, kind: Array) -> Array:
    """Return the matrix [rows, columns] at an address, which holds what `kind` does."""
    return carray(_pointer(where), (rows, columns), kind.dtype)


@compiled()
def cache_at(where: int, layers: int, heads: int, room: int, size: int) -> Array:
    """Return the keys and values [layers, 2, heads, room, size] at an address."""
    return carray(_pointer(where), (layers, 2, heads, room, size), np.float32)


@compiled()
def plane(memory: Array, start: int, rows: int, columns: int) -> tuple[Array, int]:
    """Return [rows, columns] of memory from `start` on, and where that ends; ValueError if it is shorter."""
    end = start + rows * columns
    return memory[start:end].reshape(rows, columns), end
