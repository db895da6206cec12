"""Decoding with the GPT-2 family by compiled kernels. Shape letters as in `decoder`; F feed-forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from workers.compiling import compiled
from workers.models.addressed import Parameters, cache_at, matrix_at, plane, record, shapes, vector
from workers.models.decoder import SEQUENCE, Array, Decoder, array, kind_of, matrix, rows_of, table
from workers.models.gpt2 import Gpt2
from workers.models.kernels import (
    add_rows,
    attend,
    bend,
    best,
    multiply,
    multiply_stored_transposed,
    normalise_centred,
)

_SHAPES = {
    "norm": "H",
    "norm_bias": "H",
    "inputs": "HP",
    "inputs_bias": "P",
    "output": "HH",
    "output_bias": "H",
    "forward_norm": "H",
    "forward_norm_bias": "H",
    "up": "HF",
    "up_bias": "F",
    "down": "FH",
    "down_bias": "H",
}
"""Of a layer's parameters, by the names that `_run_layers` has for them. P queries, keys and values, 3 H."""


class Gpt2Decoder(Decoder):
    """Runs new rows of sequences through a GPT-2."""

    def __init__(self, model: Gpt2, held: torch.dtype) -> None:
        """`held` is what the model's matrices hold."""
        config = self._config = model.config
        hidden, forward = config.hidden_size, config.feed_forward_size
        super().__init__(model, numbers_per_row=5 * hidden + forward)
        self._kind = kind_of(held)
        self._layers = Parameters(
            shapes(_SHAPES, H=hidden, P=3 * hidden, F=forward),
            [_parameters(model, layer) for layer in model.layer_range],
            held=self._kind.dtype,
        )
        if model.head:
            parts = model.transformer
            self._embeddings = table(parts.wte.weight), table(parts.wpe.weight)
            self._norm = array(parts.ln_f.weight), array(parts.ln_f.bias)
            self._table = matrix(parts.wte.weight if config.tied_embeddings else model.lm_head.weight)

    def embed(self, tokens: Sequence[int], positions: Sequence[int]) -> Array:
        """Return the rows [T, H] of tokens that stand at `positions`, fresh; the head only."""
        of_tokens, of_positions = self._embeddings
        return rows_of(of_tokens, tokens) + rows_of(of_positions, positions)

    def _run(self, rows: Array, positions: Sequence[int]) -> None:
        config = self._config
        _run_layers(
            rows, self._layers.records, self._kind, config.heads, config.feed_forward_size,
            config.norm_epsilon, self._sequences, self._work,
        )  # fmt: skip

    def _score(self, rows: Array, logits: Array, tokens: Array, margins: Array) -> None:
        epsilon = self._config.norm_epsilon
        _score(rows, *self._norm, epsilon, self._table, self._work, logits, tokens, margins)


def _parameters(model: Gpt2, layer: int) -> Mapping[str, Array]:
    part = model.transformer.h[str(layer)]
    return {
        "norm": array(part.ln_1.weight),
        "norm_bias": array(part.ln_1.bias),
        "inputs": matrix(part.attn.c_attn.weight),
        "inputs_bias": array(part.attn.c_attn.bias),
        "output": matrix(part.attn.c_proj.weight),
        "output_bias": array(part.attn.c_proj.bias),
        "forward_norm": array(part.ln_2.weight),
        "forward_norm_bias": array(part.ln_2.bias),
        "up": matrix(part.mlp.c_fc.weight),
        "up_bias": array(part.mlp.c_fc.bias),
        "down": matrix(part.mlp.c_proj.weight),
        "down_bias": array(part.mlp.c_proj.bias),
    }


@compiled()
def _run_layers(
    rows: Array,
    layers: Array,
    kind: Array,
    heads: int,
    forward: int,
    epsilon: float,
    sequences: Array,
    work: Array,
) -> None:
    """Run rows [M, H] through the layers, in place.

    layers: a record of the addresses of each one's parameters, of `_SHAPES`; kind: what matrices hold;
    sequences: a record of each, of `SEQUENCE`; work: the decoder's memory.
    """
    count, hidden = rows.shape
    size = hidden // heads
    normed, end = plane(work, 0, count, hidden)
    projected, end = plane(work, end, count, 3 * hidden)
    mixed, end = plane(work, end, count, hidden)
    ups, end = plane(work, end, count, forward)
    scores, unturned = work[end:], work[:0]
    three = projected.reshape(count, 3, hidden)
    for layer in range(layers.shape[0]):
        part = layers[layer]
        normalise_centred(rows, vector(part.norm, hidden), vector(part.norm_bias, hidden), epsilon, normed)
        inputs = matrix_at(part.inputs, hidden, 3 * hidden, kind)
        multiply_stored_transposed(inputs, normed, vector(part.inputs_bias, 3 * hidden), projected)
        for m in range(count):
            one = sequences[m]
            cache = cache_at(one.memory, layers.shape[0], heads, one.room, size)
            attend(
                three[m, 0], three[m, 1], three[m, 2], unturned, unturned,
                cache[layer], one.first, one.position, scores, mixed[m],
            )  # fmt: skip
        output = matrix_at(part.output, hidden, hidden, kind)
        multiply_stored_transposed(output, mixed, vector(part.output_bias, hidden), normed)
        add_rows(rows, normed)
        norm, norm_bias = vector(part.forward_norm, hidden), vector(part.forward_norm_bias, hidden)
        normalise_centred(rows, norm, norm_bias, epsilon, normed)
        up = matrix_at(part.up, hidden, forward, kind)
        multiply_stored_transposed(up, normed, vector(part.up_bias, forward), ups)
        bend(ups)
        down = matrix_at(part.down, forward, hidden, kind)
        multiply_stored_transposed(down, ups, vector(part.down_bias, hidden), normed)
        add_rows(rows, normed)


@compiled()
def _score(
    rows: Array,
    norm: Array,
    norm_bias: Array,
    epsilon: float,
    matrix: Array,
    work: Array,
    logits: Array,
    tokens: Array,
    margins: Array,
) -> None:
    """Set the first M of logits [*, V] to those of rows [M, H], by the final norm and a matrix [V, H].

    Set the first M of tokens and margins to the best ones, unless they are of no length.
    """
    count, hidden = rows.shape
    normed, _ = plane(work, 0, count, hidden)
    normalise_centred(rows, norm, norm_bias, epsilon, normed)
    multiply(matrix, normed, logits[:count])
    for m in range(min(count, tokens.shape[0])):
        tokens[m], margins[m] = best(logits[m])


def compile_for(held: torch.dtype) -> None:
    """Compile what the decoder calls for matrices held so, or read it from disk: by calls that do nothing."""
    row, rows, sequences = (
        np.zeros(2, dtype=np.float32),
        np.zeros((0, 2), dtype=np.float32),
        np.zeros(0, dtype=SEQUENCE),
    )
    layers = np.zeros(0, dtype=record(_SHAPES))
    _run_layers(rows, layers, kind_of(held), 1, 2, 1.0, sequences, row)
    _score(rows, row, row, 1.0, kind_of(held), row, rows, np.zeros(0, dtype=np.int64), np.zeros(0))
