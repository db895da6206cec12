"""Rows of activations as they cross the wire: fp32 as they are, fp16, or int8 with a scale per row. No torch.

An int8 row is round(127 x / s) with s the greatest magnitude in the row, which is sent along as fp32: an
error of at most s / 254 for each number. What does not fit fp16 becomes infinite, and what is not finite
stays so: the head ends the request with that as the reason.

Shape letters: R rows, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workers.errors import WireError

WIRE = ("fp32", "fp16", "int8")
Array = np.ndarray[Any, Any]
_DTYPES: dict[str, type] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
_CODES = {"fp32": "f32", "fp16": "f16", "int8": "i8"}
_MOST = 127


def shapes(wire: str, rows: int, hidden: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Return kind of number and shape of the tensors that carry rows [R, H], by name."""
    found: dict[str, tuple[type, tuple[int, ...]]] = {"x": (_DTYPES[wire], (rows, hidden))}
    if wire == "int8":
        found["scale"] = (np.float32, (rows,))
    return found


def bytes_of(wire: str, hidden: int) -> int:
    """Return the bytes of one row, without its frame."""
    return hidden * np.dtype(_DTYPES[wire]).itemsize + (4 if wire == "int8" else 0)


def pack(rows: Array, wire: str, tensors: Mapping[str, Array]) -> None:
    """Write rows [R, H] into tensors of those `shapes`."""
    if wire == "fp32":
        tensors["x"][:] = rows
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if wire == "fp16":
            tensors["x"][:] = rows
            return
        scale = np.abs(rows).max(axis=1)
        tensors["scale"][:] = scale
        tensors["x"][:] = np.rint(rows * (_MOST / np.where(scale == 0, 1, scale))[:, None])


def packed(rows: Array, wire: str) -> dict[str, Array]:
    """Return the tensors that carry rows [R, H]; fp32 is not copied."""
    if wire == "fp32":
        return {"x": rows}
    tensors: dict[str, Array] = {
        name: np.empty(shape, dtype) for name, (dtype, shape) in shapes(wire, *rows.shape).items()
    }
    pack(rows, wire, tensors)
    return tensors


def unpacked(tensors: Mapping[str, Array], wire: str, hidden: int) -> Array:
    """Return the rows [R, H] that tensors carry, in fp32 and writable.

    Raises:
        WireError: they are not of the precision agreed on, or not of the model's width.
    """
    x = tensors.get("x")
    if x is None or x.dtype != _DTYPES[wire] or x.ndim != 2 or x.shape[1] != hidden:
        raise WireError(f"x must be {_CODES[wire]} [rows, {hidden}]")
    if not len(x):
        raise WireError("x has 0 rows")
    if wire == "fp32":
        return x if x.flags.writeable else x.copy()
    rows = x.astype(np.float32)
    if wire == "int8":
        scale = tensors.get("scale")
        if scale is None or scale.dtype != np.float32 or scale.shape != x.shape[:1]:
            raise WireError(f"scale must be f32 [{len(x)}]: one for each row")
        with np.errstate(over="ignore", invalid="ignore"):
            rows *= (scale / _MOST)[:, None]
    return rows


def not_finite(wire: str) -> str:
    """Say why a request ends whose rows are not finite at its end."""
    way_out = "; rows beyond 65504 do not fit wire fp16: deploy with fp32 or int8" if wire == "fp16" else ""
    return f"the model's output is not finite: a node sent broken rows{way_out}"
