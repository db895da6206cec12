"""Read the fields and tensors of a frame with their types checked; a wrong one refuses the request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from workers.errors import RequestRefused
from workers.models.precision import all_finite, as_tensor
from workers.wire.frames import CODES, Tensor

_LONGEST_NAME = 128
_PARAMETER_CODES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def text(fields: Mapping[str, Any], key: str, *, longest: int = _LONGEST_NAME) -> str:
    """Return a string of 1 to `longest` characters."""
    value = fields.get(key)
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        raise _wrong(key, value, f"a text of 1 to {longest} characters")
    return value


def integer(fields: Mapping[str, Any], key: str, *, least: int = 0, most: int = 2**62) -> int:
    """Return a whole number within the given bounds."""
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(key, value, f"a whole number from {least} to {most}")
    return value


def number(fields: Mapping[str, Any], key: str, *, above: float = 0.0, most: float = math.inf) -> float:
    """Return a finite number above `above` and at most `most`."""
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
        raise _wrong(key, value, f"a number above {above:g} and at most {most:g}")
    if not math.isfinite(value):
        raise _wrong(key, value, "a finite number")
    return float(value)


def between(fields: Mapping[str, Any], key: str, least: float, most: float) -> float:
    """Return a number from `least` to `most`."""
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _wrong(key, value, f"a number from {least:g} to {most:g}")
    return float(value)


def section(fields: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a map."""
    value = fields.get(key)
    if not isinstance(value, dict):
        raise _wrong(key, value, "a map")
    return value


def choice(fields: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """Return one of the given texts."""
    value = fields.get(key)
    if value not in choices:
        raise _wrong(key, value, f"one of {', '.join(choices)}")
    return str(value)


def parameters(tensors: Mapping[str, Tensor], *, compute: str = "fp32") -> dict[str, torch.Tensor]:
    """Return parameters as torch tensors, without copying where the frame's own buffer can be kept.

    Raises:
        RequestRefused: one is not of the precision `compute`, or holds a value that is not finite.
    """
    taken: dict[str, torch.Tensor] = {}
    for name, array in tensors.items():
        code = CODES.get(array.dtype, str(array.dtype))
        if code != _PARAMETER_CODES[compute]:
            wanted = _PARAMETER_CODES[compute]
            raise RequestRefused("bad-tensor", f"{name} is {code}; parameters are sent as {wanted} here")
        tensor = as_tensor(array if array.flags.writeable else array.copy())
        if not all_finite(tensor):
            raise RequestRefused("not-finite", f"{name} holds values that are not finite; nothing was taken")
        taken[name] = tensor
    return taken


def _wrong(key: str, value: object, expected: str) -> RequestRefused:
    return RequestRefused("bad-field", f"{key} is {str(value)[:80]!r}; it must be {expected}")
