"""Read a `config.json`: which numbers the model has, and which parameters follow from them. No torch.

Llama, Mistral, Qwen2 and Qwen3 are one architecture with few differences, which are numbers here.

Everything is checked here, so that no later step allocates by a number nobody looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from workers.models.errors import BrokenModel, UnsupportedModel

F32_BYTES = 4
_MISTRAL_WINDOW = 4096
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_LIMITS = {
    "vocab_size": 1_000_000,
    "hidden_size": 65_536,
    "intermediate_size": 1_000_000,
    "num_hidden_layers": 1_024,
    "num_attention_heads": 1_024,
    "num_key_value_heads": 1_024,
    "head_dim": 4_096,
    "max_position_embeddings": 16_777_216,
    "sliding_window": 16_777_216,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's stretching of low rotary frequencies beyond the original context."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """The numbers of one Llama-family model.

    `input_bias` is of the query, key and value projections, `output_bias` of the attention's last one;
    `head_norm` normalises each head's query and key (Qwen3); with a `window`, a token sees only so many,
    itself included (Mistral).
    """

    vocabulary_size: int
    hidden_size: int
    feed_forward_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context_tokens: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    end_tokens: frozenset[int]
    family: str = "llama"
    input_bias: bool = False
    output_bias: bool = False
    head_norm: bool = False
    window: int | None = None

    @property
    def kv_bytes_per_token_and_layer(self) -> int:
        """Bytes that one token leaves in the KV cache of one layer (fp32)."""
        return 2 * self.kv_heads * self.head_size * F32_BYTES

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        return sum(math.prod(shape) for shape in _layer_shapes(self, 0).values())

    @property
    def head_parameters(self) -> int:
        """Parameters of embedding, final norm and LM head; a tied embedding counts once."""
        return sum(math.prod(shape) for shape in _head_shapes(self).values())

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self.head_parameters + self.layers * self.layer_parameters


def parse_config(document: Mapping[str, object]) -> LlamaConfig:
    """Check the content of a `config.json`.

    Raises:
        UnsupportedModel: another model type, or a feature that is not implemented.
        BrokenModel: a number is missing, of the wrong type, out of range, or contradicts another.
    """
    family = _family(document)
    hidden_size = _integer(document, "hidden_size")
    heads = _integer(document, "num_attention_heads")
    kv_heads = _integer(document, "num_key_value_heads", default=heads if family == "llama" else None)
    vocabulary_size = _integer(document, "vocab_size")
    if heads % kv_heads:
        raise BrokenModel(
            f"config: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if document.get("head_dim") is None and hidden_size % heads:
        raise BrokenModel(f"config: hidden_size {hidden_size} is no multiple of num_attention_heads {heads}")
    usual_head = 128 if family == "qwen3" else hidden_size // heads
    head_size = _integer(document, "head_dim", default=usual_head)
    if head_size % 2:
        raise BrokenModel(f"config: head_dim {head_size} is odd; rotary embeddings turn pairs")
    rope = _rope(document)
    return LlamaConfig(
        vocabulary_size=vocabulary_size,
        hidden_size=hidden_size,
        feed_forward_size=_integer(document, "intermediate_size"),
        layers=_integer(document, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        context_tokens=_integer(document, "max_position_embeddings", default=2048),
        norm_epsilon=_number(document, "rms_norm_eps", default=1e-6),
        rope_theta=_number(rope, "rope_theta", default=10_000.0),
        rope_scaling=_rope_scaling(rope),
        tied_embeddings=_boolean(document, "tie_word_embeddings", default=False),
        end_tokens=_end_tokens(document, vocabulary_size),
        family=family,
        input_bias=family == "qwen2" or _boolean(document, "attention_bias", default=False),
        output_bias=family != "qwen2" and _boolean(document, "attention_bias", default=False),
        head_norm=family == "qwen3",
        window=_window(document, family),
    )


def parameter_shapes(
    config: LlamaConfig, *, first_layer: int = 0, end_layer: int | None = None, head: bool = True
) -> dict[str, tuple[int, ...]]:
    """Return Hugging Face name to shape for layers [first_layer, end_layer), and the head's if asked.

    Raises:
        BrokenModel: the range is not within the model.
    """
    end_layer = config.layers if end_layer is None else end_layer
    check_layers(config, first_layer, end_layer)
    shapes = dict(_head_shapes(config)) if head else {}
    for layer in range(first_layer, end_layer):
        shapes.update(_layer_shapes(config, layer))
    return shapes


def check_layers(config: LlamaConfig, first_layer: int, end_layer: int) -> None:
    """Refuse a range of layers that the model does not have."""
    if not 0 <= first_layer <= end_layer <= config.layers:
        raise BrokenModel(
            f"layers [{first_layer}, {end_layer}) are not within the model's [0, {config.layers}); "
            "use 0 <= first <= end <= number of layers"
        )


def _layer_shapes(config: LlamaConfig, layer: int) -> dict[str, tuple[int, ...]]:
    hidden, forward = config.hidden_size, config.feed_forward_size
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    shapes = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (forward, hidden),
        "mlp.up_proj.weight": (forward, hidden),
        "mlp.down_proj.weight": (hidden, forward),
    }
    if config.input_bias:
        for name, size in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"self_attn.{name}_proj.bias"] = (size,)
    if config.output_bias:
        shapes["self_attn.o_proj.bias"] = (hidden,)
    if config.head_norm:
        for name in ("q", "k"):
            shapes[f"self_attn.{name}_norm.weight"] = (config.head_size,)
    return {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}


def _head_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    table = (config.vocabulary_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": table,
        "model.norm.weight": (table[1],),
    }
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = table
    return shapes


def _family(document: Mapping[str, object]) -> str:
    """Return the model type, if it is one that can be run, with nothing beside it that cannot."""
    family = document.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModel(
            f"config: model_type is {family!r}; only {', '.join(FAMILIES)} can be split over nodes"
        )
    if document.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"config: hidden_act is {document['hidden_act']!r}; only 'silu' can be run")
    for feature in ("mlp_bias", "quantization_config"):
        if document.get(feature):
            raise UnsupportedModel(
                f"config: {feature} is {document[feature]!r}; models with it cannot be run"
            )
    if family.startswith("qwen") and document.get("use_sliding_window"):
        raise UnsupportedModel(
            "config: use_sliding_window is true; Qwen models that slide in some layers cannot be run"
        )
    return family


def _window(document: Mapping[str, object], family: str) -> int | None:
    """Return how many tokens a token sees; None where it is all. Only Mistral slides in every layer.

    A file that says nothing of it means the family's usual one, as in transformers; null means none.
    """
    if family != "mistral" or document.get("sliding_window", _MISTRAL_WINDOW) is None:
        return None
    return _integer(document, "sliding_window", default=_MISTRAL_WINDOW)


def _rope(document: Mapping[str, object]) -> Mapping[str, object]:
    """Collect the rotary settings: `rope_parameters`, or the older `rope_theta` and `rope_scaling`."""
    merged: dict[str, object] = {}
    if document.get("rope_theta") is not None:
        merged["rope_theta"] = document["rope_theta"]
    for key in ("rope_scaling", "rope_parameters"):
        section = document.get(key)
        if section is None:
            continue
        if not isinstance(section, Mapping):
            raise BrokenModel(f"config: {key} is {section!r}; must be a map")
        merged.update(section)
    return merged


def _rope_scaling(rope: Mapping[str, object]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UnsupportedModel(f"config: rope_type is {kind!r}; only 'default' and 'llama3' can be run")
    scaling = RopeScaling(
        factor=_number(rope, "factor"),
        low_freq_factor=_number(rope, "low_freq_factor"),
        high_freq_factor=_number(rope, "high_freq_factor"),
        original_context_tokens=_integer(rope, "original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise BrokenModel(
            f"config: high_freq_factor {scaling.high_freq_factor:g} must be above "
            f"low_freq_factor {scaling.low_freq_factor:g}"
        )
    return scaling


def _end_tokens(document: Mapping[str, object], vocabulary_size: int) -> frozenset[int]:
    value = document.get("eos_token_id")
    tokens = [] if value is None else value if isinstance(value, list) else [value]
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary_size:
            raise BrokenModel(
                f"config: eos_token_id {token!r} is no token of a vocabulary of {vocabulary_size}"
            )
    return frozenset(tokens)


def _integer(document: Mapping[str, object], key: str, *, default: int | None = None) -> int:
    value = document.get(key)
    if value is None:
        value = default
    limit = _LIMITS.get(key, _LIMITS["max_position_embeddings"])
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise BrokenModel(f"config: {key} is {value!r}; must be a whole number from 1 to {limit}")
    return value


def _number(document: Mapping[str, object], key: str, *, default: float | None = None) -> float:
    value = document.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BrokenModel(f"config: {key} is {value!r}; must be a number above 0")
    return float(value)


def _boolean(document: Mapping[str, object], key: str, *, default: bool) -> bool:
    value = document.get(key, default)
    if not isinstance(value, bool):
        raise BrokenModel(f"config: {key} is {value!r}; must be true or false")
    return value
