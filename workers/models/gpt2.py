"""A decoder of the GPT-2 family in plain torch, whole or any contiguous part.

Shape letters: B sequences, T new rows (tokens) of each, H hidden, V vocabulary, I inputs and O outputs of a
projection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.models.chain import Cache, Chain, attend
from workers.models.gpt2_config import Gpt2Config
from workers.models.precision import linear, linear_transposed


class Projection(nn.Module):
    """A linear map whose weight is stored transposed, [I, O]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return linear_transposed(x, self.weight, self.bias)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_attn = Projection(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = Projection(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cache: Cache | None, layer: int) -> Tensor:
        batch, count, _ = x.shape
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1)
        )
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        mixed = attend(queries.contiguous(), keys, values)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, count, -1))


class FeedForward(nn.Module):
    """Two projections with the tanh form of GELU between."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.c_fc = Projection(config.hidden_size, config.feed_forward_size)
        self.c_proj = Projection(config.feed_forward_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))


class Layer(nn.Module):
    """One decoder layer: x + attention, then x + feed-forward."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cache: Cache | None, layer: int) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, layer)
        return x + self.mlp(self.ln_2(x))


class Gpt2(Chain):
    """Layers [first_layer, end_layer) of a model, with embeddings, final norm and LM head if `head`."""

    config: Gpt2Config

    def __init__(
        self, config: Gpt2Config, *, first_layer: int = 0, end_layer: int | None = None, head: bool = True
    ) -> None:
        super().__init__(config, first_layer=first_layer, end_layer=end_layer, head=head)
        self.transformer = nn.Module()
        self.transformer.h = nn.ModuleDict({str(layer): Layer(config) for layer in self.layer_range})
        if head:
            self.transformer.wte = nn.Embedding(config.vocabulary_size, config.hidden_size)
            self.transformer.wpe = nn.Embedding(config.context_tokens, config.hidden_size)
            self.transformer.ln_f = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
            if not config.tied_embeddings:
                self.lm_head = nn.Linear(config.hidden_size, config.vocabulary_size, bias=False)

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the rows [..., T, H] of tokens [..., T] at `positions`, without them from 0 on."""
        if positions is None:
            positions = torch.arange(tokens.shape[-1], device=tokens.device)
        return self.transformer.wte(tokens).float() + self.transformer.wpe(positions).float()

    def run_layers(self, x: Tensor, *, position: int = 0, cache: Cache | None = None) -> Tensor:
        """Run the layers held here over x [B, T, H], which `embed` has told where its rows stand."""
        for layer in self.layer_range:
            x = self.transformer.h[str(layer)](x, cache, layer)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [..., V] of rows [..., H] that have passed all layers."""
        table = self.transformer.wte.weight if self.config.tied_embeddings else self.lm_head.weight
        return linear(self.transformer.ln_f(x), table)
