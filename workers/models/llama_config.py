"""The `config.json` of the Llama family: Llama, Mistral, Qwen2 and Qwen3. No torch.

They are one architecture with few differences, which are numbers here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workers.models.config_fields import boolean, end_tokens, integer, number
from workers.models.errors import BrokenModel, UnsupportedModel
from workers.models.model_config import ModelConfig, Shapes

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_MISTRAL_WINDOW = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's stretching of low rotary frequencies beyond the original context."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """The numbers of one Llama-family model.

    `input_bias` is of the query, key and value projections, `output_bias` of the attention's last one;
    `head_norm` normalises each head's query and key (Qwen3); with a `window`, a token sees only so many,
    itself included (Mistral).
    """

    rope_theta: float
    rope_scaling: RopeScaling | None
    input_bias: bool = False
    output_bias: bool = False
    head_norm: bool = False
    window: int | None = None

    @property
    def prefix(self) -> str:
        """The first part of the names of all parameters but an untied LM head's."""
        return "model."

    def layer_shapes(self, layer: int) -> Shapes:
        """Return Hugging Face name to shape for one layer."""
        hidden, forward = self.hidden_size, self.feed_forward_size
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
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
        if self.input_bias:
            for name, size in (("q", queries), ("k", keys), ("v", keys)):
                shapes[f"self_attn.{name}_proj.bias"] = (size,)
        if self.output_bias:
            shapes["self_attn.o_proj.bias"] = (hidden,)
        if self.head_norm:
            for name in ("q", "k"):
                shapes[f"self_attn.{name}_norm.weight"] = (self.head_size,)
        return {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}

    def head_shapes(self) -> Shapes:
        """Return Hugging Face name to shape for embedding, final norm and LM head, if it is not tied."""
        table = (self.vocabulary_size, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": table,
            "model.norm.weight": (table[1],),
        }
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = table
        return shapes


def parse(document: Mapping[str, object]) -> LlamaConfig:
    """Check the content of a `config.json` whose `model_type` is one of `FAMILIES`.

    Raises:
        UnsupportedModel: it has a feature that is not implemented.
        BrokenModel: a number is missing, of the wrong type, out of range, or contradicts another.
    """
    family = str(document["model_type"])
    _refuse_unknown_features(document, family)
    hidden_size = integer(document, "hidden_size")
    heads = integer(document, "num_attention_heads")
    kv_heads = integer(document, "num_key_value_heads", default=heads if family == "llama" else None)
    vocabulary_size = integer(document, "vocab_size")
    if heads % kv_heads:
        raise BrokenModel(
            f"config: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if document.get("head_dim") is None and hidden_size % heads:
        raise BrokenModel(f"config: hidden_size {hidden_size} is no multiple of num_attention_heads {heads}")
    usual_head = 128 if family == "qwen3" else hidden_size // heads
    head_size = integer(document, "head_dim", default=usual_head)
    if head_size % 2:
        raise BrokenModel(f"config: head_dim {head_size} is odd; rotary embeddings turn pairs")
    rope = _rope(document)
    return LlamaConfig(
        vocabulary_size=vocabulary_size,
        hidden_size=hidden_size,
        feed_forward_size=integer(document, "intermediate_size"),
        layers=integer(document, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        context_tokens=integer(document, "max_position_embeddings", default=2048),
        norm_epsilon=number(document, "rms_norm_eps", default=1e-6),
        rope_theta=number(rope, "rope_theta", default=10_000.0),
        rope_scaling=_rope_scaling(rope),
        tied_embeddings=boolean(document, "tie_word_embeddings", default=False),
        end_tokens=end_tokens(document, vocabulary_size),
        family=family,
        input_bias=family == "qwen2" or boolean(document, "attention_bias", default=False),
        output_bias=family != "qwen2" and boolean(document, "attention_bias", default=False),
        head_norm=family == "qwen3",
        window=_window(document, family),
    )


def _refuse_unknown_features(document: Mapping[str, object], family: str) -> None:
    if document.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"config: hidden_act is {document['hidden_act']!r}; only 'silu' can be run")
    if document.get("mlp_bias"):
        raise UnsupportedModel(f"config: mlp_bias is {document['mlp_bias']!r}; models with it cannot be run")
    if family.startswith("qwen") and document.get("use_sliding_window"):
        raise UnsupportedModel(
            "config: use_sliding_window is true; Qwen models that slide in some layers cannot be run"
        )


def _window(document: Mapping[str, object], family: str) -> int | None:
    """Return how many tokens a token sees; None where it is all. Only Mistral slides in every layer.

    A file that says nothing of it means the family's usual one, as in transformers; null means none.
    """
    if family != "mistral" or document.get("sliding_window", _MISTRAL_WINDOW) is None:
        return None
    return integer(document, "sliding_window", default=_MISTRAL_WINDOW)


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
        factor=number(rope, "factor"),
        low_freq_factor=number(rope, "low_freq_factor"),
        high_freq_factor=number(rope, "high_freq_factor"),
        original_context_tokens=integer(rope, "original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise BrokenModel(
            f"config: high_freq_factor {scaling.high_freq_factor:g} must be above "
            f"low_freq_factor {scaling.low_freq_factor:g}"
        )
    return scaling
