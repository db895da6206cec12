"""Low-rank adapters (LoRA, Hu et al. 2021): W + scale * B A in place of W, of which only A and B are trained.

Names are `<module>.lora_A.weight` [rank, in] and `<module>.lora_B.weight` [out, rank], as peft writes them.
No torch here: the orchestrator makes, counts and merges adapters; `lora_layers` trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ADAPTER_A, ADAPTER_B = ".lora_A.weight", ".lora_B.weight"
_WEIGHT = ".weight"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The rank r and alpha; what the adapters add is scaled by alpha / r."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """Return alpha / r."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A linear map of a layer; its weight is [outputs, inputs], or the transpose of that."""

    inputs: int
    outputs: int
    transposed: bool = False


def adapter_shapes(projections: Mapping[str, Projection], lora: Lora) -> dict[str, tuple[int, ...]]:
    """Return the adapters of a model: one pair for each of its layers' projections, named by module."""
    found: dict[str, tuple[int, ...]] = {}
    for module, projection in projections.items():
        found[module + ADAPTER_A] = (lora.rank, projection.inputs)
        found[module + ADAPTER_B] = (projection.outputs, lora.rank)
    return found


def initial(projections: Mapping[str, Projection], lora: Lora, *, seed: int) -> Arrays:
    """Return adapters that change nothing yet: A drawn from a normal distribution, B zero (section 4.1)."""
    rng = np.random.default_rng([seed, lora.rank])
    made: Arrays = {}
    for name, shape in adapter_shapes(projections, lora).items():
        if name.endswith(ADAPTER_A):
            made[name] = rng.normal(0, shape[1] ** -0.5, shape).astype(np.float32)
        else:
            made[name] = np.zeros(shape, dtype=np.float32)
    return made


def merged(
    base: Mapping[str, NDArray[Any]],
    adapters: Mapping[str, NDArray[Any]],
    lora: Lora,
    projections: Mapping[str, Projection],
) -> Arrays:
    """Return the parameters of the model that `base` with its adapters is."""
    whole = dict(base)
    for name, up in adapters.items():
        if name.endswith(ADAPTER_B):
            module = name.removesuffix(ADAPTER_B)
            product = up @ adapters[module + ADAPTER_A]
            if projections[module].transposed:
                product = product.T
            whole[module + _WEIGHT] = (base[module + _WEIGHT] + np.float32(lora.scale) * product).astype(
                np.float32
            )
    return whole
