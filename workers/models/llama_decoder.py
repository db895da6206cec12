"""Decoding with the Llama family by compiled kernels. Shape letters as in `decoder`; F feed-forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workers import memory
from workers.models import kernels
from workers.models.decoder import NONE, Array, Attending, Decoder, array, embedded, matrix
from workers.models.llama import Llama


class LlamaDecoder(Decoder):
    """Runs new rows of sequences through a Llama, Mistral or Qwen."""

    def __init__(self, model: Llama) -> None:
        super().__init__(model)
        self._config = model.config
        self._rotary = model.rotary
        self._parts = [_layer(model, layer) for layer in model.layer_range]
        if model.head:
            tied = model.config.tied_embeddings
            self._embedding = model.model.embed_tokens.weight
            self._norm = array(model.model.norm.weight)
            self._table = matrix(self._embedding if tied else model.lm_head.weight)

    def embed(self, tokens: Sequence[int], positions: Sequence[int]) -> Array:
        """Return the rows [T, H] of tokens, wherever they stand; the head only."""
        return embedded(self._embedding, tokens)

    def logits(self, rows: Array) -> Array:
        """Return the logits [M, V] of rows [M, H] that have passed all layers; the head only."""
        self._ready(len(rows))
        logits = memory.empty((len(rows), len(self._table)))
        kernels.normalise(rows, self._norm, self._config.norm_epsilon, self._normed)
        kernels.multiply(self._table, self._normed, logits)
        return logits

    def _allocate(self, count: int) -> list[Attending]:
        config = self._config
        queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
        self._normed = memory.empty((count, config.hidden_size))
        self._queries, self._mixed = memory.empty((count, queries)), memory.empty((count, queries))
        self._keys, self._values = memory.empty((count, keys)), memory.empty((count, keys))
        self._gates = memory.empty((count, config.feed_forward_size))
        self._ups = memory.empty((count, config.feed_forward_size))
        return list(map(Attending, self._queries, self._keys, self._values, self._mixed))

    def _project(self, place: int, rows: Array) -> None:
        part, epsilon = self._parts[place], self._config.norm_epsilon
        kernels.project(
            rows, part.norms[0], epsilon, *part.inputs, *part.input_biases,
            self._normed, self._queries, self._keys, self._values,
        )  # fmt: skip
        if self._config.head_norm:
            kernels.normalise_heads(self._queries, part.head_norms[0], epsilon)
            kernels.normalise_heads(self._keys, part.head_norms[1], epsilon)

    def _finish(self, place: int, rows: Array) -> None:
        part = self._parts[place]
        kernels.finish(
            rows, self._mixed, part.output, part.output_bias, part.norms[1], self._config.norm_epsilon,
            *part.forward, self._normed, self._gates, self._ups,
        )  # fmt: skip

    def _angles(self, position: int) -> tuple[Array, Array]:
        return self._rotary.row(position)

    def _first_seen(self, position: int) -> int:
        window = self._config.window
        return 0 if window is None else max(0, position + 1 - window)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer's parameters, as the kernels take them: of queries, keys and values in that order."""

    norms: tuple[Array, Array]
    inputs: tuple[Array, ...]
    input_biases: tuple[Array, ...]
    head_norms: tuple[Array, ...]
    output: Array
    output_bias: Array
    forward: tuple[Array, ...]


def _layer(model: Llama, layer: int) -> _Layer:
    part = model.model.layers[str(layer)]
    attention, forward = part.self_attn, part.mlp
    inputs = attention.q_proj, attention.k_proj, attention.v_proj
    head_norms = (attention.q_norm, attention.k_norm) if model.config.head_norm else ()
    return _Layer(
        norms=(array(part.input_layernorm.weight), array(part.post_attention_layernorm.weight)),
        inputs=tuple(matrix(projection.weight) for projection in inputs),
        input_biases=tuple(_bias(projection) for projection in inputs),
        head_norms=tuple(array(norm.weight) for norm in head_norms),
        output=matrix(attention.o_proj.weight),
        output_bias=_bias(attention.o_proj),
        forward=tuple(
            matrix(projection.weight)
            for projection in (forward.gate_proj, forward.up_proj, forward.down_proj)
        ),
    )


def _bias(projection: torch.nn.Linear) -> Array:
    return NONE if projection.bias is None else array(projection.bias)
