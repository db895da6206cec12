"""A decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3) in plain torch, whole or any contiguous part.

Parameter names are Hugging Face's. The same code trains (no cache, [B, T] tokens) and decodes (a KV cache,
B = 1). Shape letters: B sequences, T new rows (tokens) of each, S rows in all (cached and new), H hidden,
N query heads, K key/value heads, G = N / K, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.models.chain import Cache, Chain, attend
from workers.models.errors import BrokenModel
from workers.models.llama_config import LlamaConfig, RopeScaling
from workers.models.precision import linear


class RmsNorm(nn.Module):
    """Scale rows to unit root mean square, then by a learned weight."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Rotary:
    """Cosines and sines of the rotary position embedding, computed once per position.

    Kept on the CPU, even while `build` makes a model without memory of its own.
    """

    def __init__(self, config: LlamaConfig) -> None:
        self._frequencies = _frequencies(config)
        self._limit = config.context_tokens
        self._cos = self._sin = torch.empty(0, config.head_size, device="cpu")
        self._arrays = self._cos.numpy(), self._sin.numpy()

    def rows(self, position: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cos and sin, [count, D], of `count` positions from `position` on, on `device`."""
        end = position + count
        self._reach(end)
        return self._cos[position:end].to(device), self._sin[position:end].to(device)

    def arrays(self, end: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return cos and sin, [*, D], of all positions before `end` and perhaps some more."""
        self._reach(end)
        return self._arrays

    def _reach(self, end: int) -> None:
        if end > self._limit:
            raise BrokenModel(
                f"position {end - 1} is beyond the model's context of {self._limit}; use a shorter text"
            )
        if end > len(self._cos):
            self._compute(min(self._limit, max(end, 2 * len(self._cos), 256)))

    def _compute(self, count: int) -> None:
        # Not an inference tensor even when first needed while decoding: training may use the same table.
        with torch.inference_mode(False):
            angles = torch.outer(torch.arange(count, dtype=torch.float32), self._frequencies)
            angles = torch.cat((angles, angles), dim=-1)
            self._cos, self._sin = angles.cos(), angles.sin()
        self._arrays = self._cos.numpy(), self._sin.numpy()


def _frequencies(config: LlamaConfig) -> Tensor:
    """Return the angle per position of each pair of head dimensions, [D / 2]."""
    with torch.inference_mode(False):
        pairs = torch.arange(0, config.head_size, 2, dtype=torch.float32, device="cpu")
        frequencies = 1.0 / (config.rope_theta ** (pairs / config.head_size))
        return _stretch(frequencies, config.rope_scaling) if config.rope_scaling else frequencies


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide long wavelengths by the factor, keep short ones, blend between (Llama 3.1)."""
    turns = scaling.original_context_tokens * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [B, heads, T, D] by the angles of its rows, cos and sin [T, D]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Linear(nn.Linear):
    """A linear map whose weight may be held in 16 bits."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = Linear(config.hidden_size, queries, bias=config.input_bias)
        self.k_proj = Linear(config.hidden_size, keys, bias=config.input_bias)
        self.v_proj = Linear(config.hidden_size, keys, bias=config.input_bias)
        self.o_proj = Linear(queries, config.hidden_size, bias=config.output_bias)
        norms = (RmsNorm(config.head_size, config.norm_epsilon) for _ in range(2))
        self.q_norm, self.k_norm = norms if config.head_norm else (nn.Identity(), nn.Identity())

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: Cache | None, layer: int) -> Tensor:
        batch, count, _ = x.shape
        queries = _rotate(self.q_norm(self._heads(self.q_proj(x), self.config.heads)), *angles)
        keys = _rotate(self.k_norm(self._heads(self.k_proj(x), self.config.kv_heads)), *angles)
        values = self._heads(self.v_proj(x), self.config.kv_heads)
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        mixed = attend(queries, keys, values, window=self.config.window)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, count, -1))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """Split [B, T, heads * D] into [B, heads, T, D]."""
        return x.unflatten(-1, (heads, self.config.head_size)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.feed_forward_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.feed_forward_size, bias=False)
        self.down_proj = Linear(config.feed_forward_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer: x + attention, then x + feed-forward."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.norm_epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.norm_epsilon)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: Cache | None, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(Chain):
    """Layers [first_layer, end_layer) of a model, with embedding, final norm and LM head if `head`."""

    config: LlamaConfig

    def __init__(
        self, config: LlamaConfig, *, first_layer: int = 0, end_layer: int | None = None, head: bool = True
    ) -> None:
        super().__init__(config, first_layer=first_layer, end_layer=end_layer, head=head)
        self.model = nn.Module()
        self.model.layers = nn.ModuleDict({str(layer): Layer(config) for layer in self.layer_range})
        if head:
            self.model.embed_tokens = nn.Embedding(config.vocabulary_size, config.hidden_size)
            self.model.norm = RmsNorm(config.hidden_size, config.norm_epsilon)
            if not config.tied_embeddings:
                self.lm_head = Linear(config.hidden_size, config.vocabulary_size, bias=False)
        self.rotary = Rotary(config)

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the rows [..., T, H] of tokens [..., T], wherever they stand."""
        return self.model.embed_tokens(tokens).float()

    def run_layers(self, x: Tensor, *, position: int = 0, cache: Cache | None = None) -> Tensor:
        """Run the layers held here over x [B, T, H], whose first row stands at `position`."""
        angles = self.rotary.rows(position, x.shape[1], x.device)
        for layer in self.layer_range:
            x = self.model.layers[str(layer)](x, angles, cache, layer)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [..., V] of rows [..., H] that have passed all layers."""
        table = self.model.embed_tokens.weight if self.config.tied_embeddings else self.lm_head.weight
        return linear(self.model.norm(x), table)
