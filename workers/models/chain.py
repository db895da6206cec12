"""What the models of all families have in common: a chain of layers, of which any part can be held.

Shape letters: B sequences, T new rows (tokens) of each, S rows in all (cached and new), H hidden, N query
heads, K key/value heads, G = N / K, D head size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.models.errors import BrokenModel
from workers.models.model_config import ModelConfig, check_layers


class Cache(Protocol):
    """Keys and values of one sequence, of the layers held here."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [1, K, T, D] to `layer` and return all rows so far, [1, K, S, D]."""


class Chain(nn.Module, ABC):
    """Layers [first_layer, end_layer) of a model, with what comes before and after them if `head`.

    Parameter names are Hugging Face's. The same code trains (no cache, [B, T] tokens) and decodes (a KV
    cache, B = 1).
    """

    def __init__(
        self, config: ModelConfig, *, first_layer: int = 0, end_layer: int | None = None, head: bool = True
    ) -> None:
        super().__init__()
        end_layer = config.layers if end_layer is None else end_layer
        check_layers(config, first_layer, end_layer)
        self.config, self.head, self.layer_range = config, head, range(first_layer, end_layer)

    @abstractmethod
    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the rows [..., T, H] of tokens [..., T] that stand at `positions` [..., T]; the head only.

        Without them the tokens stand from 0 on.
        """

    @abstractmethod
    def run_layers(self, x: Tensor, *, position: int = 0, cache: Cache | None = None) -> Tensor:
        """Run the layers held here over x [B, T, H], whose first row stands at `position`."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [..., V] of rows [..., H] that have passed all layers; the head only."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits [B, T, V] of tokens [B, T]; the whole model only."""
        return self.logits(self.run_layers(self.embed(tokens)))

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the mean loss, in nats per token, of predicting tokens [B, T + 1] each from those before."""
        logits = self(tokens[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, window: int | None = None) -> Tensor:
    """Return [B, N, T, D] of causal attention: queries [B, N, T, D] to keys and values [B, K, S, D].

    The queries are of the last T rows; with a `window`, a row sees only so many, itself included.
    """
    batch, heads, count, size = queries.shape
    kv_heads = keys.shape[1]
    if count == 1 and window is not None:
        keys, values = keys[:, :, -window:], values[:, :, -window:]
    if count == 1:  # the G queries of a group see the same rows: no copy of the cache
        grouped = queries.view(batch, kv_heads, heads // kv_heads, size)
        mixed = functional.scaled_dot_product_attention(grouped, keys, values)
        return mixed.reshape(batch, heads, 1, size)
    if heads > kv_heads:
        keys, values = (rows.repeat_interleave(heads // kv_heads, dim=1) for rows in (keys, values))
    seen = keys.shape[2] - count
    if not seen and (window is None or count <= window):
        return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    mask = torch.ones(count, seen + count, dtype=torch.bool, device=queries.device).tril(diagonal=seen)
    if window is not None:
        mask = mask.triu(diagonal=seen - window + 1)
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


def check_parameters(
    expected: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    *,
    source: str = "parameters",
) -> None:
    """Refuse missing, unknown or misshapen parameters, naming the first few."""
    missing = [name for name in expected if name not in given]
    if missing:
        raise BrokenModel(f"{source}: {len(missing)} missing, among them {', '.join(missing[:3])}")
    unknown = [name for name in given if name not in expected]
    if unknown:
        raise BrokenModel(
            f"{source}: {len(unknown)} that do not belong there, among them {', '.join(unknown[:3])}"
        )
    for name, shape in expected.items():
        if given[name] != shape:
            raise BrokenModel(
                f"{source}: {name} has shape {list(given[name])}, the configuration gives {list(shape)}"
            )


def greedy(logits: Tensor) -> tuple[int, float]:
    """Return the best token of logits [V] and by how much it beats the second."""
    best = torch.topk(logits, 2)
    return int(best.indices[0]), float(best.values[0] - best.values[1])
