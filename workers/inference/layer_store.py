"""The parameters a node holds, layer by layer, shared by all route epochs that use them.

A new epoch that keeps a layer where it is costs no transfer and no memory for it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from workers.errors import RequestRefused
from workers.models.chain import check_parameters
from workers.models.kv_cache import MemoryBudget
from workers.models.model_config import ModelConfig, parameter_shapes

HEAD = -1
"""The unit of embedding, final norm and LM head; others are layer numbers."""

Parameters = dict[str, torch.Tensor]


@dataclass(slots=True)
class _Unit:
    parameters: Parameters
    size_bytes: int
    users: int = 0


class LayerStore:
    """Counted references to units of models; thread-safe."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._units: dict[tuple[str, int], _Unit] = {}
        self._lock = threading.Lock()

    def acquire(
        self,
        model: str,
        config: ModelConfig,
        units: list[int],
        sent: Mapping[str, torch.Tensor],
        *,
        reuse: bool,
    ) -> Parameters:
        """Take a reference to each unit, from what is held or what was sent, and return all parameters.

        Raises:
            RequestRefused: a unit is neither held nor sent, or what was sent differs from what is held.
            OutOfMemory: the new units do not fit.
            BrokenModel: what was sent is misshapen.
        """
        shapes = {unit: _shapes(config, unit) for unit in units}
        with self._lock:
            if sent or not reuse:
                self._check_sent(model, shapes, sent, reuse=reuse)
            new = [unit for unit in units if (model, unit) not in self._units]
            absent = [unit for unit in new if any(name not in sent for name in shapes[unit])]
            if absent:
                raise RequestRefused("not-held", f"{_names(absent)} of {model} are not held here; send them")
            self._add(model, {unit: {name: sent[name] for name in shapes[unit]} for unit in new})
            taken = [self._units[model, unit] for unit in units]
            for unit in taken:
                unit.users += 1
        return {name: value for unit in taken for name, value in unit.parameters.items()}

    def release(self, model: str, units: list[int]) -> None:
        """Give references back; a unit without any is freed."""
        with self._lock:
            for key in [(model, unit) for unit in units]:
                unit = self._units[key]
                unit.users -= 1
                if not unit.users:
                    del self._units[key]
                    self._budget.release(unit.size_bytes)

    def held(self, model: str) -> tuple[list[int], bool]:
        """Return the layers held of a model, and whether the head's parameters are."""
        with self._lock:
            units = [unit for name, unit in self._units if name == model]
        return sorted(unit for unit in units if unit != HEAD), HEAD in units

    def _check_sent(
        self,
        model: str,
        shapes: Mapping[int, dict[str, tuple[int, ...]]],
        sent: Mapping[str, torch.Tensor],
        *,
        reuse: bool,
    ) -> None:
        expected = {name: shape for unit in shapes.values() for name, shape in unit.items()}
        if reuse:  # what is held need not be sent
            expected = {name: shape for name, shape in expected.items() if name in sent}
        check_parameters(expected, {name: tuple(value.shape) for name, value in sent.items()})
        for unit in shapes:
            held = self._units.get((model, unit))
            for name, value in held.parameters.items() if held else ():
                if name in sent and not torch.equal(value, sent[name]):
                    raise RequestRefused(
                        "digest-mismatch",
                        f"{name} differs from what is held under the same model digest {model}",
                    )

    def _add(self, model: str, units: Mapping[int, Parameters]) -> None:
        sizes = {
            unit: sum(value.numel() * value.element_size() for value in parameters.values())
            for unit, parameters in units.items()
        }
        self._budget.reserve(sum(sizes.values()), f"{_names(list(units))} of {model}")
        for unit, parameters in units.items():
            self._units[model, unit] = _Unit(parameters=parameters, size_bytes=sizes[unit])


def _shapes(config: ModelConfig, unit: int) -> dict[str, tuple[int, ...]]:
    if unit == HEAD:
        return parameter_shapes(config, first_layer=0, end_layer=0, head=True)
    return parameter_shapes(config, first_layer=unit, end_layer=unit + 1, head=False)


def _names(units: list[int]) -> str:
    layers = ", ".join(str(unit) for unit in units if unit != HEAD)
    parts = ["the head"] if HEAD in units else []
    return " and ".join([*parts, *([f"layers {layers}"] if layers else [])]) or "no layers"
