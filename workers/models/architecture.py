"""What fine-tuning has to know of a model, from its `config.json` alone: parameters, shapes, projections.

A model of the Llama family that can be split (`config.parse_config`) is trained by the code that serves it;
any other of the known families by the transformers library (`library`). No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from workers.models.config import parse_config
from workers.models.errors import UnsupportedModel
from workers.models.llama_config import LlamaConfig
from workers.models.lora import Projection
from workers.models.model_config import parameter_shapes

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A causal model that can be trained.

    `shapes` has each parameter once, tied ones under the name of their embedding; `projections` are the
    linear maps of its layers, which adapters may be put to, by module. Some files leave `prefix` out of the
    names. `own` is set where this package has the model itself.
    """

    family: str
    document: Mapping[str, object]
    vocabulary_size: int
    layers: int
    context_tokens: int
    shapes: Shapes
    projections: Mapping[str, Projection]
    prefix: str = ""
    own: LlamaConfig | None = None

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def architecture(document: Mapping[str, object]) -> Architecture:
    """Check the content of a `config.json` and say what follows from it.

    Raises:
        UnsupportedModel: a family, or a feature, that cannot be trained.
        BrokenModel: a number is missing, of the wrong type, out of range, or contradicts another.
    """
    try:
        config = parse_config(document)
    except UnsupportedModel:
        config = None
    if not isinstance(config, LlamaConfig):
        from workers.models import library  # torch and transformers: seconds, and only where they are needed

        return library.describe(document)
    shapes = parameter_shapes(config)
    return Architecture(
        family=config.family,
        document=document,
        vocabulary_size=config.vocabulary_size,
        layers=config.layers,
        context_tokens=config.context_tokens,
        shapes=shapes,
        projections={
            name.removesuffix(".weight"): Projection(inputs=shape[1], outputs=shape[0])
            for name, shape in shapes.items()
            if ".layers." in name and len(shape) == 2
        },
        prefix=config.prefix,
        own=config,
    )
