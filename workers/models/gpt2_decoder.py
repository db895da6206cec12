"""Decoding with the GPT-2 family by compiled kernels. Shape letters as in `decoder`; F feed-forward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from workers import memory
from workers.models import kernels
from workers.models.decoder import Array, Attending, Decoder, array, embedded, matrix
from workers.models.gpt2 import Gpt2


class Gpt2Decoder(Decoder):
    """Runs new rows of sequences through a GPT-2."""

    def __init__(self, model: Gpt2) -> None:
        super().__init__(model)
        self._config = model.config
        self._attentions, self._forwards = [], []
        for layer in model.layer_range:
            part = model.transformer.h[str(layer)]
            self._attentions.append((*_norm(part.ln_1), self._config.norm_epsilon, *_map(part.attn.c_attn)))
            after = (*_map(part.attn.c_proj), *_norm(part.ln_2), self._config.norm_epsilon)
            self._forwards.append((*after, *_map(part.mlp.c_fc), *_map(part.mlp.c_proj)))
        if model.head:
            parts = model.transformer
            self._embeddings = parts.wte.weight, parts.wpe.weight
            self._norm = _norm(parts.ln_f)
            self._table = matrix(parts.wte.weight if model.config.tied_embeddings else model.lm_head.weight)

    def embed(self, tokens: Sequence[int], positions: Sequence[int]) -> Array:
        """Return the rows [T, H] of tokens that stand at `positions`, fresh; the head only."""
        of_tokens, of_positions = self._embeddings
        return embedded(of_tokens, tokens) + embedded(of_positions, positions)

    def logits(self, rows: Array) -> Array:
        """Return the logits [M, V] of rows [M, H] that have passed all layers; the head only."""
        self._ready(len(rows))
        logits = memory.empty((len(rows), len(self._table)))
        kernels.normalise_centred(rows, *self._norm, self._config.norm_epsilon, self._normed)
        kernels.multiply(self._table, self._normed, logits)
        return logits

    def _allocate(self, count: int) -> list[Attending]:
        hidden = self._config.hidden_size
        self._normed, self._mixed = memory.empty((count, hidden)), memory.empty((count, hidden))
        self._projected = memory.empty((count, 3 * hidden))
        self._ups = memory.empty((count, self._config.feed_forward_size))
        inputs = self._projected.reshape(count, 3, hidden)
        return [Attending(*three, mixed) for three, mixed in zip(inputs, self._mixed, strict=True)]

    def _project(self, place: int, rows: Array) -> None:
        kernels.project_centred(rows, *self._attentions[place], self._normed, self._projected)

    def _finish(self, place: int, rows: Array) -> None:
        kernels.finish_centred(rows, self._mixed, *self._forwards[place], self._normed, self._ups)


def _norm(part: nn.LayerNorm) -> tuple[Array, Array]:
    return array(part.weight), array(part.bias)


def _map(part: nn.Module) -> tuple[Array, Array]:
    """Return weight and bias of a projection."""
    return matrix(part.weight), array(part.bias)
