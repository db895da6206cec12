"""Arithmetic on parameters: checked updates, their running sum, the next version. Memory O(model).

Shape legend: P the number of parameters of the model, all tensors one after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.finetune import kernels
from workers import memory
from workers.wire.frames import Tensor, TensorSpec

Parameters = Mapping[str, NDArray[np.float32]]

LARGEST = 256.0
"""An update that moves a parameter further than this is no training; it is refused."""
MOST_UNITS = 4.0
"""The largest weight of an update, in units of the sum's `unit`."""
MOST_UPDATES = 4095

_BLOCK = 1 << 17
"""Elements whose sums widen together."""
_WIDER = {np.dtype(np.int8): np.int16, np.dtype(np.int16): np.int32}


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
    if kernels.within(values.reshape(-1), LARGEST):
        return None
    if not np.isfinite(values).all():
        return f"{name} holds values that are not finite"
    return f"{name} holds {values[np.abs(values).argmax()]:.4g}; an update must stay within {LARGEST:g}"


class SumMemory:
    """What sums of one size take, one after another: fresh memory costs as much as a pass over it.

    A sum's lower half becomes the next version of the parameters and is free again when nobody holds that any
    more. Not thread-safe; one sum at a time.
    """

    def __init__(self) -> None:
        self._low = memory.Kept(most=2)
        self._high: list[NDArray[Any]] = []

    def take(self, size: int) -> tuple[NDArray[np.uint32], list[NDArray[Any]]]:
        """Give the two planes of `size` sums, all zero."""
        low = self._low.get(4 * size).view(np.uint32)
        low.fill(0)
        kept, self._high = self._high, []
        high = []
        for number, start in enumerate(range(0, size, _BLOCK)):
            wanted = min(_BLOCK, size - start)
            plane = kept[number] if number < len(kept) else np.empty(0, np.int8)
            if plane.size != wanted:
                plane = np.empty(wanted, np.int8)
            plane.fill(0)
            high.append(plane)
        return low, high

    def give_back(self, high: list[NDArray[Any]]) -> None:
        """Take the upper plane of a spent sum; what has widened is free at once."""
        self._high = [plane if plane.dtype == np.int8 else np.empty(0, np.int8) for plane in high]


class WeightedSum:
    """The running sum of weight * update, exact, so that the order of arrival does not show in any bit.

    Values are rounded, once each, to 2^-41 of `unit`, and added as integers (fixed point). The error of a
    mean is so below `unit` / (mean weight) * 2^-42, less than half the last digit of fp32 for every
    parameter above 4e-6. It takes 5 bytes per parameter, and up to 8 where sums are large: from a quarter
    of `unit` and from 64 times `unit` on. Not thread-safe.
    """

    def __init__(self, parameters: Parameters, *, unit: float, memory: SumMemory | None = None) -> None:
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
        self._memory = memory or SumMemory()
        self._low, self._high = self._memory.take(total)  # [P], and per block of _BLOCK

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
            for block, within, part in _blocks(start, filled[name]):
                self._add_to(block, within, array.reshape(-1)[part], factor)
        self._weights.append(weight)

    def _add_to(self, block: int, within: slice, values: Tensor, factor: float) -> None:
        low = self._low[block * _BLOCK :][within]
        while not kernels.add(low, self._high[block][within], values, factor):
            kernels.add(low, self._high[block][within], values, -factor)
            self._high[block] = self._high[block].astype(_WIDER[self._high[block].dtype])

    def applied_to(self, base: Parameters, *, learning_rate: float) -> dict[str, NDArray[np.float32]]:
        """Give base + learning_rate * weighted mean. The sum is spent: its memory becomes the result's."""
        if list(base) != list(self._places):
            raise ValueError("base has other tensors than the sum, or another order")
        factor = learning_rate * self._unit * kernels.RESOLUTION / self.weight
        low, self._low = self._low, np.empty(0, dtype=np.uint32)
        for name, place in self._places.items():
            flat = base[name].reshape(-1)
            for block, within, part in _blocks(place.start, place.stop):
                kernels.apply(low[block * _BLOCK :][within], self._high[block][within], flat[part], factor)
        high, self._high = self._high, []
        self._memory.give_back(high)
        result = low.view(np.float32)
        return {name: result[place].reshape(self._shapes[name]) for name, place in self._places.items()}

    def mean(self) -> dict[str, NDArray[np.float32]]:
        """Give the weighted mean. The sum is spent, as by `applied_to`."""
        nothing = np.zeros(max((math.prod(shape) for shape in self._shapes.values()), default=0), np.float32)
        zeros = {name: nothing[: math.prod(shape)].reshape(shape) for name, shape in self._shapes.items()}
        return self.applied_to(zeros, learning_rate=1.0)


def _blocks(start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut elements from `start` to `stop` at blocks; gives the block, where in it, and where among them."""
    at = start
    while at < stop:
        block, begin = divmod(at, _BLOCK)
        end = min(stop - block * _BLOCK, _BLOCK)
        yield block, slice(begin, end), slice(at - start, at - start + end - begin)
        at += end - begin
