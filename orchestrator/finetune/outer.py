"""The orchestrator's own optimiser: it takes the nodes' mean update for a gradient that points the other way.

`sgd` adds learning_rate * mean update. `nesterov` is SGD with Nesterov momentum, DiLoCo's outer optimiser
(Douillard et al. 2023, section 3). `adam` is FedAdam (Reddi et al. 2021, Algorithm 2) with Adam's correction
of the first steps, which that leaves out. The arithmetic is that of torch.optim.SGD and torch.optim.Adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.errors import InvalidValue
from orchestrator.finetune.parameters import Parameters, WeightedSum

OUTER_OPTIMISERS = ("sgd", "nesterov", "adam")
_STEPS = "steps"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterSettings:
    """Which optimiser; `momentum` is Adam's beta 1, too; `epsilon` FedAdam's tau."""

    kind: str = "sgd"
    momentum: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8


class OuterOptimiser:
    """Makes versions of the parameters. Arrays that it was given or has given out are never changed."""

    def __init__(self, settings: OuterSettings) -> None:
        if settings.kind not in OUTER_OPTIMISERS:
            raise InvalidValue(
                f"outer optimiser {settings.kind!r} is unknown; known: {', '.join(OUTER_OPTIMISERS)}"
            )
        self._settings = settings
        self._moments: dict[str, Arrays] = {}
        self._steps = 0

    def step(self, base: Parameters, total: WeightedSum, *, learning_rate: float) -> Arrays:
        """Give the next version of `base` from the updates in `total`."""
        self._steps += 1
        if self._settings.kind == "sgd":
            return total.applied_to(base, learning_rate=learning_rate)
        made = total.mean()
        direct = self._nesterov if self._settings.kind == "nesterov" else self._adam
        for name, array in base.items():  # the next version takes the place of the mean
            made[name][...] = array - learning_rate * direct(name, -made[name])
        return made

    def state(self) -> Arrays:
        """Return what `restore` needs to go on; empty if there is nothing to remember."""
        if not self._moments:
            return {}
        kept = {
            f"{kind}/{name}": array
            for kind, arrays in self._moments.items()
            for name, array in arrays.items()
        }
        return {**kept, _STEPS: np.array([self._steps], dtype=np.int64)}

    def restore(self, state: Mapping[str, NDArray[Any]], base: Parameters) -> None:
        """Go on from what `state` returned.

        Raises:
            InvalidValue: it does not belong to these parameters.
        """
        self._moments, self._steps = {}, 0
        for key, array in state.items():
            if key == _STEPS:
                self._steps = int(array[0])
                continue
            kind, _, name = key.partition("/")
            if name not in base or array.shape != base[name].shape:
                raise InvalidValue(f"the outer optimiser's {key} does not belong to these parameters")
            self._moments.setdefault(kind, {})[name] = array

    def _nesterov(self, name: str, gradient: NDArray[Any]) -> NDArray[Any]:
        velocity = self._decayed("velocity", name, gradient, self._settings.momentum, 1.0)
        return gradient + self._settings.momentum * velocity

    def _adam(self, name: str, gradient: NDArray[Any]) -> NDArray[Any]:
        beta1, beta2 = self._settings.momentum, self._settings.beta2
        first = self._decayed("first", name, gradient, beta1, 1 - beta1)
        second = self._decayed("second", name, gradient * gradient, beta2, 1 - beta2)
        first = first / (1 - beta1**self._steps)
        second = second / (1 - beta2**self._steps)
        return first / (np.sqrt(second) + self._settings.epsilon)

    def _decayed(self, kind: str, name: str, value: NDArray[Any], decay: float, share: float) -> NDArray[Any]:
        """Give decay * what is remembered + share * value, and remember it."""
        known = self._moments.setdefault(kind, {})
        before = known.get(name)
        known[name] = share * value if before is None else decay * before + share * value
        return known[name]
