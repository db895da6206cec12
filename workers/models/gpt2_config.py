"""The `config.json` of GPT-2. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workers.models.config_fields import boolean, end_tokens, integer, number
from workers.models.errors import BrokenModel, UnsupportedModel
from workers.models.model_config import ModelConfig, Shapes

FAMILIES = ("gpt2",)
_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")
"""Two names of one function."""
_FEATURES = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
"""What a model may say of its attention, and what alone is implemented."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpt2Config(ModelConfig):
    """The numbers of one GPT-2."""

    @property
    def prefix(self) -> str:
        """The first part of the names of all parameters but an untied LM head's."""
        return "transformer."

    def layer_shapes(self, layer: int) -> Shapes:
        """Return Hugging Face name to shape for one layer; matrices are stored transposed, [in, out]."""
        hidden, forward = self.hidden_size, self.feed_forward_size
        sizes = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden)}
        sizes |= {"mlp.c_fc": (hidden, forward), "mlp.c_proj": (forward, hidden)}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, size in sizes.items():
            shapes |= {f"{name}.weight": size, f"{name}.bias": size[1:]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
        return {f"transformer.h.{layer}.{name}": shape for name, shape in shapes.items()}

    def head_shapes(self) -> Shapes:
        """Return Hugging Face name to shape for embedding, final norm and LM head, if it is not tied."""
        table = (self.vocabulary_size, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {
            "transformer.wte.weight": table,
            "transformer.wpe.weight": (self.context_tokens, self.hidden_size),
            "transformer.ln_f.weight": (self.hidden_size,),
            "transformer.ln_f.bias": (self.hidden_size,),
        }
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = table
        return shapes


def parse(document: Mapping[str, object]) -> Gpt2Config:
    """Check the content of a `config.json` whose `model_type` is gpt2.

    Raises:
        UnsupportedModel: it has a feature that is not implemented.
        BrokenModel: a number is missing, of the wrong type, out of range, or contradicts another.
    """
    activation = document.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise UnsupportedModel(
            f"config: activation_function is {activation!r}; only {' and '.join(_ACTIVATIONS)} can be run"
        )
    for feature, implemented in _FEATURES.items():
        if boolean(document, feature, default=implemented) != implemented:
            raise UnsupportedModel(
                f"config: {feature} is {document[feature]!r}; only {implemented!r} can be run"
            )
    hidden_size, heads = integer(document, "n_embd"), integer(document, "n_head")
    if hidden_size % heads:
        raise BrokenModel(f"config: n_embd {hidden_size} is no multiple of n_head {heads}")
    vocabulary_size = integer(document, "vocab_size")
    return Gpt2Config(
        family="gpt2",
        vocabulary_size=vocabulary_size,
        hidden_size=hidden_size,
        feed_forward_size=integer(document, "n_inner", default=4 * hidden_size),
        layers=integer(document, "n_layer"),
        heads=heads,
        kv_heads=heads,
        head_size=hidden_size // heads,
        context_tokens=integer(document, "n_positions", default=1024),
        norm_epsilon=number(document, "layer_norm_epsilon", default=1e-5),
        tied_embeddings=boolean(document, "tie_word_embeddings", default=True),
        end_tokens=end_tokens(document, vocabulary_size),
    )
