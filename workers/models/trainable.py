"""Models to be trained or evaluated whole, whatever code they are of.

Legend: B sequences, T tokens of each, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from workers.models import llama, split
from workers.models.architecture import Architecture
from workers.models.chain import check_parameters


def build(found: Architecture, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Make a model around given parameters without copying them.

    Raises:
        BrokenModel: parameters are missing, unknown, or not of the shape that the configuration gives.
    """
    if found.own is not None:
        return split.build(found.own, parameters)
    from workers.models import library

    check_parameters(found.shapes, {name: tuple(value.shape) for name, value in parameters.items()})
    return library.build(found, parameters)


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean loss, in nats per token, of predicting tokens [B, T + 1] each from those before."""
    logits = _logits(model, tokens[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits [B, T, V] of tokens [B, T]."""
    if isinstance(model, llama.Llama):
        return model.forward(tokens)
    made: Any = model(input_ids=tokens, use_cache=False)
    logits: Tensor = made.logits
    return logits
