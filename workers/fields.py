"""Read the fields and tensors of a frame with their types checked; a wrong one refuses the request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from workers.errors import RequestRefused
from workers.wire import Tensor

_LONGEST_NAME = 128


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


def parameters(tensors: Mapping[str, Tensor]) -> dict[str, torch.Tensor]:
    """Return fp32 parameters as torch tensors, without copying where the frame's own buffer can be kept.

    Raises:
        RequestRefused: one is not fp32, or holds a value that is not finite.
    """
    taken: dict[str, torch.Tensor] = {}
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise RequestRefused("bad-tensor", f"{name} is {array.dtype}; parameters are sent as f32")
        if not np.isfinite(array).all():
            raise RequestRefused("not-finite", f"{name} holds values that are not finite; nothing was taken")
        taken[name] = torch.from_numpy(array if array.flags.writeable else array.copy())
    return taken


def _wrong(key: str, value: object, expected: str) -> RequestRefused:
    return RequestRefused("bad-field", f"{key} is {str(value)[:80]!r}; it must be {expected}")
