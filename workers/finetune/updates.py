"""The forms in which updates cross the wire: f32, f16, i8 with scales, or the largest values only. No torch.

`fp32`, `fp16`: each tensor under its name in that type. `int8`: the name in i8 and `name:scale` in f32, one
scale per row for tensors of two or more dimensions, else one; value = scale * integer, rounded to nearest.
`topk`: `name:index` (i32, places in C order, rising) and `name:value` (f32) of the ceil(ratio * size) values
of largest magnitude. What top-k leaves out, the sender adds to its next update (error feedback: Stich et
al. 2018; Karimireddy et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENCODINGS = ("fp32", "fp16", "int8", "topk")
SCALE, INDEX, VALUE = ":scale", ":index", ":value"
_INT8_MOST = 127
_F16_MOST = float(np.finfo(np.float16).max)

Update = dict[str, NDArray[Any]]


class UpdateFault(Exception):
    """An update that cannot be used; the text says which tensor, and why."""


def encode(update: Mapping[str, NDArray[Any]], encoding: str, *, ratio: float) -> Update:
    """Put an update of fp32 tensors into its form on the wire; `ratio` is top-k's.

    Raises:
        UpdateFault: a value does not fit into fp16.
    """
    if encoding == "fp32":
        return dict(update)
    sent: Update = {}
    for name, values in update.items():
        if encoding == "fp16":
            sent[name] = _half(name, values)
        elif encoding == "int8":
            sent[name], sent[name + SCALE] = _quantised(values)
        else:
            sent[name + INDEX], sent[name + VALUE] = _largest(values, ratio)
    return sent


def decode(
    received: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, tuple[int, ...]],
    encoding: str,
    *,
    ratio: float,
) -> Update:
    """Return the fp32 update of tensors of `shapes` that was sent as `received`.

    Nothing of what came is believed: names, types, sizes, scales and places are checked, values only for
    being finite. Memory: one fp32 copy of the update.

    Raises:
        UpdateFault: it is not a whole update in that form.
    """
    wanted = wire_names(shapes, encoding)
    missing, unknown = sorted(wanted - set(received))[:3], sorted(set(received) - wanted)[:3]
    if missing or unknown:
        raise UpdateFault(f"the update lacks {missing} and has unknown {unknown}")
    return {name: _decoded(received, name, shape, encoding, ratio) for name, shape in shapes.items()}


def wire_names(shapes: Mapping[str, tuple[int, ...]], encoding: str) -> set[str]:
    """Return the names of the tensors of an update on the wire."""
    suffixes = {"int8": ("", SCALE), "topk": (INDEX, VALUE)}.get(encoding, ("",))
    return {name + suffix for name in shapes for suffix in suffixes}


def wire_bytes(shapes: Mapping[str, tuple[int, ...]], encoding: str, *, ratio: float) -> int:
    """Return the bytes of an update's tensors on the wire."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if encoding == "int8":
        return sum(size + 4 * math.prod(_scale_shape(shapes[name])) for name, size in sizes.items())
    if encoding == "topk":
        return sum(8 * kept(size, ratio) for size in sizes.values())
    return sum(sizes.values()) * (2 if encoding == "fp16" else 4)


def kept(size: int, ratio: float) -> int:
    """Return how many of `size` values top-k keeps."""
    return min(size, max(1, math.ceil(ratio * size)))


def _half(name: str, values: NDArray[Any]) -> NDArray[np.float16]:
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _F16_MOST:
        raise UpdateFault(f"{name} holds {largest:.4g}, which fp16 cannot; use fp32 or int8")
    return values.astype(np.float16)


def _quantised(values: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    rows = values.reshape(_rows(values.shape))
    scale = (np.abs(rows).max(axis=1, initial=0.0) / _INT8_MOST).astype(np.float32)
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    quantised = np.clip(np.rint(rows / divisor), -_INT8_MOST, _INT8_MOST).astype(np.int8)
    return quantised.reshape(values.shape), scale


def _largest(values: NDArray[Any], ratio: float) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    count = kept(flat.size, ratio)
    index = np.sort(np.argpartition(np.abs(flat), flat.size - count)[flat.size - count :])
    return index.astype(np.int32), flat[index]


def _decoded(
    received: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...], encoding: str, ratio: float
) -> NDArray[np.float32]:
    if encoding == "topk":
        count = (kept(math.prod(shape), ratio),)
        index = _typed(received, name + INDEX, np.int32, count)
        value = _typed(received, name + VALUE, np.float32, count)
        size = math.prod(shape)
        if index.size and (index[0] < 0 or index[-1] >= size or (np.diff(index) <= 0).any()):
            raise UpdateFault(
                f"{name + INDEX} must rise within 0 to {size - 1}; it has {index.min()} to {index.max()}"
            )
        flat = np.zeros(size, dtype=np.float32)
        flat[index] = _finite(name + VALUE, value)
        return flat.reshape(shape)
    if encoding == "int8":
        scale = _finite(name + SCALE, _typed(received, name + SCALE, np.float32, _scale_shape(shape)))
        if (scale < 0).any():
            raise UpdateFault(f"{name + SCALE} holds {scale.min():g}, below 0")
        rows = _typed(received, name, np.int8, shape).reshape(_rows(shape)).astype(np.float32)
        with np.errstate(over="ignore"):  # an absurd scale; what overflows is refused
            return _finite(name, (rows * scale[:, None]).reshape(shape))
    wire_type: type[Any] = np.float16 if encoding == "fp16" else np.float32
    return _finite(name, _typed(received, name, wire_type, shape).astype(np.float32, copy=False))


def _typed(
    received: Mapping[str, NDArray[Any]], name: str, dtype: type[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    array = received[name]
    if array.dtype != dtype or array.shape != shape:
        raise UpdateFault(
            f"{name} is {array.dtype} {list(array.shape)}, must be {np.dtype(dtype)} {list(shape)}"
        )
    return array


def _finite(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(array).all():
        raise UpdateFault(f"{name} holds values that are not finite")
    return array


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // max(1, rows)


def _scale_shape(shape: tuple[int, ...]) -> tuple[int]:
    return (_rows(shape)[0],)
