"""Arithmetic on parameters: checked updates, their running sum, the next version. Memory O(model).

Shape legend: P the number of parameters of the model, all tensors one after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from workers.wire import Tensor, TensorSpec

Parameters = Mapping[str, NDArray[np.float32]]

LARGEST = 256.0
"""An update that moves a parameter further than this is no training; it is refused."""
MOST_UNITS = 4.0
"""The largest weight of an update, in units of the sum's `unit`."""
MOST_UPDATES = 4095

# A double between 2^k and 2^(k+1) has its last bit at 2^(k-52). What is added to 1.5 * 2^k is so rounded to
# a multiple of that, half to even, and the bits of the result, read as an integer, count those multiples:
# integers whose sum is exact. |weight * value| < 2^10 stays within the binade of 1.5 * 2^11.
_ANCHOR = 1.5 * 2.0**11
_ANCHOR_BITS = int(np.float64(_ANCHOR).view(np.int64))
_RESOLUTION = 2.0**-41
_BLOCK = 32_768
"""Elements worked on at a time: they and what is made of them stay in the core's cache."""


def spec_fault(specs: Iterable[TensorSpec], parameters: Parameters) -> str | None:
    """Say why tensors so announced cannot be an update of `parameters`; None if they can."""
    announced = {spec.name: spec for spec in specs}
    missing = sorted(set(parameters) - set(announced))
    unknown = sorted(set(announced) - set(parameters))
    if missing or unknown:
        return f"the update lacks {missing[:3]} and has unknown {unknown[:3]}"
    for name, expected in parameters.items():
        spec = announced[name]
        if spec.shape != expected.shape or spec.dtype != np.float32:
            return f"{name} is {spec.dtype} {list(spec.shape)}, must be float32 {list(expected.shape)}"
    return None


def value_fault(name: str, values: Tensor) -> str | None:
    """Say why `values`, part of the tensor `name` of an update, cannot be added; None if they can."""
    if values.size == 0 or -LARGEST <= values.min() <= values.max() <= LARGEST:
        return None
    if not np.isfinite(values).all():
        return f"{name} holds values that are not finite"
    return f"{name} holds {values[np.abs(values).argmax()]:.4g}; an update must stay within {LARGEST:g}"


class WeightedSum:
    """The running sum of weight * update, exact, so that the order of arrival does not show in any bit.

    Values are rounded, once each, to 2^-41 of `unit`, and added as integers (fixed point). The error of a
    mean is so below `unit` / (mean weight) * 2^-42, less than half the last digit of fp32 for every
    parameter above 4e-6. Not thread-safe.
    """

    def __init__(self, parameters: Parameters, *, unit: float) -> None:
        """Begin a sum over updates of `parameters`; weights lie in (0, MOST_UNITS * `unit`].

        `unit` should be near the usual weight; it must be known before the first update is there.
        """
        if not (unit > 0 and math.isfinite(unit)):
            raise ValueError(f"unit is {unit!r}; it must be a number above 0")
        self._shapes = {name: array.shape for name, array in parameters.items()}
        self._unit = unit
        self._weights: list[float] = []
        self._places: dict[str, slice] = {}
        total = 0
        for name, array in parameters.items():
            self._places[name] = slice(total, total + array.size)
            total += array.size
        self._sums = np.zeros(total, dtype=np.int64)  # [P]
        self._room = np.empty(_BLOCK)

    @property
    def weight(self) -> float:
        """Give the total weight added."""
        return math.fsum(self._weights)

    def add(self, update: Iterable[tuple[str, Tensor]], weight: float) -> None:
        """Add one update whose specs and values have no fault.

        `update` gives each tensor once, whole or in flat pieces one after another.

        Raises:
            ValueError: the weight is outside its range, or there are too many updates; nothing was added.
        """
        factor = weight / self._unit
        if not 0 < factor <= MOST_UNITS:
            raise ValueError(f"weight {weight!r} is not above 0 and up to {MOST_UNITS:g} * {self._unit:g}")
        if len(self._weights) >= MOST_UPDATES:
            raise ValueError(f"{MOST_UPDATES} updates are in the sum; more could overflow it")
        filled = {name: place.start for name, place in self._places.items()}
        for name, array in update:
            start = filled[name]
            filled[name] = start + array.size
            self._add_one(self._sums[start : filled[name]], array.reshape(-1), factor)
        self._weights.append(weight)

    def _add_one(self, sums: NDArray[np.int64], values: Tensor, factor: float) -> None:
        for start in range(0, len(values), _BLOCK):
            part = values[start : start + _BLOCK]
            room = self._room[: len(part)]
            room[:] = part  # apart from the arithmetic, which numpy would do in small pieces otherwise
            if factor != 1.0:
                room *= factor
            room += _ANCHOR
            into = sums[start : start + _BLOCK]
            into += room.view(np.int64)

    def applied_to(self, base: Parameters, *, learning_rate: float) -> dict[str, NDArray[np.float32]]:
        """Give base + learning_rate * weighted mean. The sum is spent: its memory becomes the result's."""
        if list(base) != list(self._places):
            raise ValueError("base has other tensors than the sum, or another order")
        factor = learning_rate * self._unit * _RESOLUTION / self.weight
        offset = np.int64((len(self._weights) * _ANCHOR_BITS + 2**63) % 2**64 - 2**63)
        sums, self._sums = self._sums, np.empty(0, dtype=np.int64)
        size = len(sums)
        written = sums.view(np.float32)
        for name, place in self._places.items():
            old = base[name].reshape(-1)
            for start in range(place.start, place.stop, _BLOCK):
                stop = min(start + _BLOCK, place.stop)
                room, part = self._room[: stop - start], sums[start:stop]
                part -= offset
                room[:] = part
                room *= factor
                room += old[start - place.start : stop - place.start]
                # Behind the reading: element i is written where i / 2 was, which has been read.
                written[start:stop] = room
        sums.resize((size + 1) // 2, refcheck=False)
        flat = sums.view(np.float32)[:size]
        return {name: flat[place].reshape(self._shapes[name]) for name, place in self._places.items()}
