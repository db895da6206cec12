"""The model that goes round: a Llama's tensors, 10,000,000 parameters, and the updates that answer it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.models.config import parse_config
from workers.models.model_config import parameter_shapes

Arrays = dict[str, NDArray[np.float32]]

_UPDATE_SCALE = 1e-3


def config(*, quick: bool) -> dict[str, Any]:
    """Give the model's configuration: 10,000,000 parameters, or 158,848 with `quick`."""
    hidden, feed_forward, layers, heads, vocabulary = (
        (64, 172, 3, 4, 259) if quick else (320, 864, 6, 5, 8005)
    )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }


def shapes(*, quick: bool) -> dict[str, tuple[int, ...]]:
    """Give name to shape of the model's tensors."""
    return parameter_shapes(parse_config(config(quick=quick)))


def arrays(*, quick: bool, seed: int, scale: float = _UPDATE_SCALE) -> Arrays:
    """Draw tensors of the model's shapes, normal(0, `scale`)."""
    flat = np.random.default_rng(seed).standard_normal(size_bytes(quick=quick) // 4, dtype=np.float32)
    flat *= np.float32(scale)
    tensors, start = {}, 0
    for name, shape in shapes(quick=quick).items():
        tensors[name] = flat[start : start + count(shape)].reshape(shape)
        start += count(shape)
    return tensors


def count(shape: tuple[int, ...]) -> int:
    """Numbers in a tensor of this shape."""
    return math.prod(shape)


def size_bytes(*, quick: bool) -> int:
    """Bytes of the parameters."""
    return sum(4 * count(shape) for shape in shapes(quick=quick).values())
