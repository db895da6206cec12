"""Models of all families that can be split over nodes, whole or any contiguous part."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from workers.models.chain import Chain, check_parameters
from workers.models.gpt2 import Gpt2
from workers.models.gpt2_config import Gpt2Config
from workers.models.llama import Llama
from workers.models.llama_config import LlamaConfig
from workers.models.model_config import ModelConfig, parameter_shapes


def make(
    config: ModelConfig, *, first_layer: int = 0, end_layer: int | None = None, head: bool = True
) -> Chain:
    """Make the model, or a part of it, with the parameters that torch begins with."""
    match config:
        case LlamaConfig():
            return Llama(config, first_layer=first_layer, end_layer=end_layer, head=head)
        case Gpt2Config():
            return Gpt2(config, first_layer=first_layer, end_layer=end_layer, head=head)
        case _:
            raise TypeError(f"there is no model of {type(config).__name__}")


def build(
    config: ModelConfig,
    parameters: Mapping[str, Tensor],
    *,
    first_layer: int = 0,
    end_layer: int | None = None,
    head: bool = True,
) -> Chain:
    """Make the model, or a part of it, around given parameters without copying them.

    Matrices may be held in 16 bits; what is added or multiplied number by number is few and held in fp32.

    Raises:
        BrokenModel: parameters are missing, unknown, or not of the shape that the configuration gives.
    """
    expected = parameter_shapes(config, first_layer=first_layer, end_layer=end_layer, head=head)
    check_parameters(expected, {name: tuple(value.shape) for name, value in parameters.items()})
    with torch.device("meta"):
        model = make(config, first_layer=first_layer, end_layer=end_layer, head=head)
    held = {
        name: parameters[name].float() if len(shape) == 1 else parameters[name]
        for name, shape in expected.items()
    }
    model.load_state_dict(held, strict=True, assign=True)
    return model
