"""The model of the benchmark: its numbers, random parameters, a tokeniser that has a text for every token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.models.config import parse_config
from workers.models.loader import write_folder
from workers.models.model_config import parameter_shapes

PROMPT = tuple(range(11, 27))
_DEVIATION = 0.02


def config(*, quick: bool) -> dict[str, Any]:
    """Return the `config.json`; `quick`: of a model that a test can run. It has no end token."""
    hidden, forward, layers, vocabulary = (64, 176, 4, 1000) if quick else (512, 1408, 8, 32000)
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": forward,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def parameters(document: dict[str, Any], *, seed: int) -> dict[str, Tensor]:
    """Return random parameters: matrices of deviation 0.02, norms of one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * _DEVIATION if len(shape) == 2 else torch.ones(shape)
        for name, shape in parameter_shapes(parse_config(document)).items()
    }


def tokenizer_json(document: dict[str, Any]) -> str:
    """Return a `tokenizer.json` in which token i is the word `ti`."""
    words = {f"t{token}": token for token in range(document["vocab_size"])}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
        }
    )


def write(folder: Path, document: dict[str, Any], values: dict[str, Tensor]) -> None:
    """Write the model as a Hugging Face folder, for the peers."""
    write_folder(folder, document, values, tokenizer_json(document))
