"""Read a `config.json`: which numbers the model has, and which parameters follow from them. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from workers.models import gpt2_config, llama_config
from workers.models.errors import UnsupportedModel
from workers.models.model_config import ModelConfig

FAMILIES = tuple(sorted((*gpt2_config.FAMILIES, *llama_config.FAMILIES)))


def parse_config(document: Mapping[str, object]) -> ModelConfig:
    """Check the content of a `config.json` of a model that is to be split.

    Raises:
        UnsupportedModel: another model type, or a feature that is not implemented.
        BrokenModel: a number is missing, of the wrong type, out of range, or contradicts another.
    """
    family = document.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModel(
            f"config: model_type is {family!r}; only {', '.join(FAMILIES)} can be split over nodes"
        )
    if document.get("quantization_config"):
        raise UnsupportedModel(
            f"config: quantization_config is {document['quantization_config']!r}; the model is quantised; "
            "give the folder of the one it was made from"
        )
    of_gpt2 = family in gpt2_config.FAMILIES
    return gpt2_config.parse(document) if of_gpt2 else llama_config.parse(document)
