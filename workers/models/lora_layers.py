"""Train adapters: hook them to the projections of a model that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.models.lora import ADAPTER_A, ADAPTER_B


def attach(model: nn.Module, adapters: Mapping[str, Tensor], scale: float) -> dict[str, nn.Parameter]:
    """Freeze `model` and add scale * B A x to what its projections make of x; return what is trained."""
    model.requires_grad_(False)
    trained = {name: nn.Parameter(value) for name, value in adapters.items()}
    for name in trained:
        if name.endswith(ADAPTER_A):
            module = name.removesuffix(ADAPTER_A)
            hook = _adding(trained[name], trained[module + ADAPTER_B], scale)
            model.get_submodule(module).register_forward_hook(hook)
    return trained


def _adding(down: nn.Parameter, up: nn.Parameter, scale: float) -> Callable[..., torch.Tensor]:
    def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + scale * functional.linear(functional.linear(inputs[0], down), up)

    return hook
