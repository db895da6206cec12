"""The outer optimisers, held against torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.core.errors import InvalidValue
from orchestrator.finetune.outer import OuterOptimiser, OuterSettings
from orchestrator.finetune.parameters import WeightedSum

START = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "b": np.ones(2, dtype=np.float32)}


def settings(kind: str) -> OuterSettings:
    return OuterSettings(kind=kind, momentum=0.9, beta2=0.95, epsilon=1e-3)


def reference(kind: str, parameters: list[torch.Tensor], rate: float) -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.95), eps=1e-3)
    momentum = 0.9 if kind == "nesterov" else 0.0
    return torch.optim.SGD(parameters, lr=rate, momentum=momentum, nesterov=kind == "nesterov")


def updates(step: int) -> list[tuple[dict[str, Any], float]]:
    """Draw the updates of two nodes with unequal weights."""
    rng = np.random.default_rng(step)
    return [
        ({name: rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in START.items()}, weight)
        for weight in (8.0, 24.0)
    ]


def total(step: int) -> WeightedSum:
    summed = WeightedSum(START, unit=8.0)
    for update, weight in updates(step):
        summed.add(update.items(), weight)
    return summed


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adam"])
def test_steps_are_those_of_torch_with_the_mean_update_as_negative_gradient(kind: str) -> None:
    outer, mine = OuterOptimiser(settings(kind)), dict(START)
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in START.items()}
    optimiser = reference(kind, list(theirs.values()), 0.3)
    for step in range(6):
        mine = outer.step(mine, total(step), learning_rate=0.3)
        for name, parameter in theirs.items():
            mean = sum(weight * update[name] for update, weight in updates(step)) / 32
            parameter.grad = torch.tensor(-mean, dtype=torch.float32)
        optimiser.step()
        for name, parameter in theirs.items():
            np.testing.assert_allclose(mine[name], parameter.detach().numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adam"])
def test_a_restored_optimiser_goes_on_to_the_same_bits(kind: str) -> None:
    outer, parameters = OuterOptimiser(settings(kind)), dict(START)
    for step in range(3):
        parameters = outer.step(parameters, total(step), learning_rate=0.3)
    kept = outer.state()
    again = OuterOptimiser(settings(kind))
    again.restore(kept, parameters)
    before = {name: array.copy() for name, array in kept.items()}
    first, second = (one.step(parameters, total(3), learning_rate=0.3) for one in (outer, again))
    for name in START:
        np.testing.assert_array_equal(first[name], second[name])
    for name, array in before.items():
        np.testing.assert_array_equal(kept[name], array, err_msg="what was given out must not change")


def test_plain_sgd_remembers_nothing() -> None:
    outer = OuterOptimiser(settings("sgd"))
    outer.step(START, total(0), learning_rate=1.0)
    assert outer.state() == {}


def test_a_state_of_other_parameters_and_an_unknown_kind_are_refused() -> None:
    outer = OuterOptimiser(settings("nesterov"))
    with pytest.raises(InvalidValue, match="does not belong"):
        outer.restore({"velocity/w": np.zeros(5, np.float32)}, START)
    with pytest.raises(InvalidValue, match="lion"):
        OuterOptimiser(OuterSettings(kind="lion"))
