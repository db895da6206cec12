"""Causal models of the transformers library: described and built from a `config.json` that is not trusted.

Nothing is fetched and no code of a folder is run. Numbers are bounded before the library sees them; shapes
are taken from a model without memory (torch's meta device). Dropout is off, so that the same seed gives the
same update.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.models.architecture import Architecture
from workers.models.errors import BrokenModel, UnsupportedModel
from workers.models.lora import Projection

FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
_NUMBERS = {
    "vocab_size": (("vocab_size",), 1_000_000),
    "hidden size": (("hidden_size", "n_embd"), 65_536),
    "layers": (("num_hidden_layers", "n_layer"), 1_024),
    "heads": (("num_attention_heads", "n_head"), 1_024),
    "context": (("max_position_embeddings", "n_positions"), 16_777_216),
}
_OPTIONAL = {
    "intermediate_size": 1_000_000,
    "n_inner": 1_000_000,
    "num_key_value_heads": 1_024,
    "head_dim": 4_096,
}
_LEFT_OUT = frozenset({
    "_attn_implementation", "_name_or_path", "architectures", "attn_implementation", "auto_map",
    "custom_pipelines", "dtype", "torch_dtype", "transformers_version", "use_cache",
})  # fmt: skip
"""What would choose code, precision or a place to fetch from: not the folder's business."""


def describe(document: Mapping[str, object]) -> Architecture:
    """Say what a model of `document` is made of.

    Raises:
        UnsupportedModel: another family, or a quantised model.
        BrokenModel: a number is missing or out of range, or the library refuses the configuration.
    """
    family = document.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModel(
            f"config: model_type is {family!r}; models of {', '.join(FAMILIES)} can be trained"
        )
    if document.get("quantization_config"):
        raise UnsupportedModel("config: the model is quantised; give the folder of the one it was made from")
    for name, (keys, most) in _NUMBERS.items():
        if not any(_is_count(document.get(key), most) for key in keys):
            values = ", ".join(f"{key} {document.get(key)!r}" for key in keys)
            raise BrokenModel(f"config: {name} ({values}) must be a whole number from 1 to {most}")
    for key, most in _OPTIONAL.items():
        if document.get(key) is not None and not _is_count(document[key], most):
            raise BrokenModel(f"config: {key} is {document[key]!r}; must be a whole number from 1 to {most}")
    wanted = {key: value for key, value in document.items() if key not in _LEFT_OUT}
    try:
        return _described(json.dumps(wanted, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise BrokenModel(f"config: cannot be read: {error}") from error


def build(found: Architecture, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Make the model around given parameters, whose shapes were checked, without copying them."""
    model = _empty(found.document)
    model.load_state_dict(dict(parameters), strict=False, assign=True)
    model.tie_weights()
    device = next(iter(parameters.values())).device
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, type(module)(config=model.config).to(device))
    left = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    if left:
        raise UnsupportedModel(f"config: {left[0]} is no parameter of the folder and cannot be computed")
    return model.eval()


@functools.lru_cache(maxsize=8)
def _described(text: str) -> Architecture:
    document = json.loads(text)
    model = _empty(document)
    head = model.get_output_embeddings()
    config = model.config
    return Architecture(
        family=str(document["model_type"]),
        document=document,
        vocabulary_size=config.vocab_size,
        layers=config.num_hidden_layers,
        context_tokens=config.max_position_embeddings,
        shapes={name: tuple(value.shape) for name, value in model.named_parameters()},
        projections={
            name: projection
            for name, module in model.named_modules()
            if module is not head and (projection := _projection(module)) is not None
        },
        prefix=f"{model.base_model_prefix}.",
    )


def _projection(module: nn.Module) -> Projection | None:
    """Return a module as a linear map, None if it is none; GPT-2's keep their weights transposed."""
    if isinstance(module, nn.Linear):
        return Projection(inputs=module.in_features, outputs=module.out_features)
    if type(module).__name__ == "Conv1D":
        inputs, outputs = module.weight.shape
        return Projection(inputs=inputs, outputs=outputs, transposed=True)
    return None


def _empty(document: Mapping[str, Any]) -> Any:
    """Make a model whose parameters have no memory yet.

    Raises:
        BrokenModel: the library refuses the configuration.
    """
    transformers = _transformers()
    values = {key: value for key, value in document.items() if key not in _LEFT_OUT}
    family = values.pop("model_type")
    try:
        config = transformers.AutoConfig.for_model(family, **values)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
            )
    except Exception as error:  # the library raises whatever its arithmetic on the numbers does
        raise BrokenModel(f"config: transformers cannot make a {family} model of it: {error}") from error


@functools.cache
def _transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UnsupportedModel(
            f"the transformers library cannot be imported: {error}; `make setup`"
        ) from error


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
