"""Arithmetic on parameters: checked updates, their running sum, the next version. Memory O(model)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Parameters = Mapping[str, NDArray[np.float32]]


def fault(delta: Mapping[str, NDArray[Any]], parameters: Parameters) -> str | None:
    """Say why `delta` cannot be added to `parameters`; None if it can."""
    missing = sorted(set(parameters) - set(delta))
    unknown = sorted(set(delta) - set(parameters))
    if missing or unknown:
        return f"the update lacks {missing[:3]} and has unknown {unknown[:3]}"
    for name, expected in parameters.items():
        array = delta[name]
        if array.shape != expected.shape or array.dtype != np.float32:
            return f"{name} is {array.dtype} {list(array.shape)}, must be float32 {list(expected.shape)}"
        if not np.isfinite(array).all():
            return f"{name} holds values that are not finite"
    return None


class WeightedSum:
    """The running sum of weight * delta, in double precision so that the order of arrival does not show."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self.weight = 0.0

    def add(self, delta: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Add one checked update."""
        for name, array in delta.items():
            if name in self._sums:
                self._sums[name] += weight * array.astype(np.float64)
            else:
                self._sums[name] = weight * array.astype(np.float64)
        self.weight += weight

    def applied_to(self, base: Parameters, *, learning_rate: float) -> dict[str, NDArray[np.float32]]:
        """Give base + learning_rate * weighted mean."""
        factor = learning_rate / self.weight
        return {name: (array + factor * self._sums[name]).astype(np.float32) for name, array in base.items()}
