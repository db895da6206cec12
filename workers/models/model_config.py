"""What every family's configuration has: numbers, and the parameters that follow from them. No torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from workers.models.errors import BrokenModel

F32_BYTES = 4
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(ABC):
    """The numbers of one model that can be split; `prefix` is what some files leave out of the names."""

    family: str
    vocabulary_size: int
    hidden_size: int
    feed_forward_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context_tokens: int
    norm_epsilon: float
    tied_embeddings: bool
    end_tokens: frozenset[int]

    @property
    @abstractmethod
    def prefix(self) -> str:
        """The first part of the names of all parameters but an untied LM head's."""

    @abstractmethod
    def layer_shapes(self, layer: int) -> Shapes:
        """Return Hugging Face name to shape for one layer."""

    @abstractmethod
    def head_shapes(self) -> Shapes:
        """Return Hugging Face name to shape for embedding, final norm and LM head, if it is not tied."""

    @property
    def kv_bytes_per_token_and_layer(self) -> int:
        """Bytes that one token leaves in the KV cache of one layer (fp32)."""
        return 2 * self.kv_heads * self.head_size * F32_BYTES

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        return sum(math.prod(shape) for shape in self.layer_shapes(0).values())

    @property
    def head_parameters(self) -> int:
        """Parameters of embedding, final norm and LM head; a tied embedding counts once."""
        return sum(math.prod(shape) for shape in self.head_shapes().values())

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self.head_parameters + self.layers * self.layer_parameters


def parameter_shapes(
    config: ModelConfig, *, first_layer: int = 0, end_layer: int | None = None, head: bool = True
) -> dict[str, tuple[int, ...]]:
    """Return Hugging Face name to shape for layers [first_layer, end_layer), and the head's if asked.

    Raises:
        BrokenModel: the range is not within the model.
    """
    end_layer = config.layers if end_layer is None else end_layer
    check_layers(config, first_layer, end_layer)
    shapes = dict(config.head_shapes()) if head else {}
    for layer in range(first_layer, end_layer):
        shapes.update(config.layer_shapes(layer))
    return shapes


def check_layers(config: ModelConfig, first_layer: int, end_layer: int) -> None:
    """Refuse a range of layers that the model does not have."""
    if not 0 <= first_layer <= end_layer <= config.layers:
        raise BrokenModel(
            f"layers [{first_layer}, {end_layer}) are not within the model's [0, {config.layers}); "
            "use 0 <= first <= end <= number of layers"
        )
