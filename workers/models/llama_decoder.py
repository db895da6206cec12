"""Decoding with the Llama family by compiled kernels. Shape letters as in `decoder`; F feed-forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from workers.compiling import compiled
from workers.models.addressed import Parameters, cache_at, matrix_at, plane, record, shapes, vector
from workers.models.decoder import SEQUENCE, Array, Decoder, array, kind_of, matrix, rows_of, table
from workers.models.kernels import add, add_rows, attend, best, gate, multiply, normalise, normalise_heads
from workers.models.llama import Llama

_SHAPES = {
    "norm": "H",
    "query": "QH",
    "key": "KH",
    "value": "KH",
    "query_bias": "Q",
    "key_bias": "K",
    "value_bias": "K",
    "query_norm": "D",
    "key_norm": "D",
    "output": "HQ",
    "output_bias": "H",
    "forward_norm": "H",
    "gate": "FH",
    "up": "FH",
    "down": "HF",
}
"""Of a layer's parameters, by the names that `_run_layers` has for them. Q all query heads, K all of keys."""
_OPTIONAL = ("query_bias", "key_bias", "value_bias", "query_norm", "key_norm", "output_bias")


class LlamaDecoder(Decoder):
    """Runs new rows of sequences through a Llama, Mistral or Qwen."""

    def __init__(self, model: Llama, held: torch.dtype) -> None:
        """`held` is what the model's matrices hold."""
        config = self._config = model.config
        size, hidden, forward = config.head_size, config.hidden_size, config.feed_forward_size
        queries, keys = config.heads * size, config.kv_heads * size
        super().__init__(model, numbers_per_row=hidden + 2 * queries + 2 * keys + 2 * forward)
        self._rotary = model.rotary
        self._kind = kind_of(held)
        self._layers = Parameters(
            shapes(_SHAPES, H=hidden, Q=queries, K=keys, D=size, F=forward),
            [_parameters(model, layer) for layer in model.layer_range],
            held=self._kind.dtype,
            optional=_OPTIONAL,
        )
        self._sizes = config.heads, config.kv_heads, size, forward
        if model.head:
            embedding = model.model.embed_tokens.weight
            self._embedding = table(embedding)
            self._norm = array(model.model.norm.weight)
            self._table = matrix(embedding if config.tied_embeddings else model.lm_head.weight)

    def embed(self, tokens: Sequence[int], positions: Sequence[int]) -> Array:
        """Return the rows [T, H] of tokens, wherever they stand; the head only."""
        return rows_of(self._embedding, tokens)

    def _run(self, rows: Array, positions: Sequence[int]) -> None:
        _run_layers(
            rows, self._layers.records, self._kind, *self._sizes, self._config.norm_epsilon,
            self._sequences, *self._rotary.arrays(max(positions, default=0) + 1), self._work,
        )  # fmt: skip

    def _score(self, rows: Array, logits: Array, tokens: Array, margins: Array) -> None:
        epsilon = self._config.norm_epsilon
        _score(rows, self._norm, epsilon, self._table, self._work, logits, tokens, margins)

    def _first_seen(self, position: int) -> int:
        window = self._config.window
        return 0 if window is None else max(0, position + 1 - window)


def _parameters(model: Llama, layer: int) -> Mapping[str, Array | None]:
    part = model.model.layers[str(layer)]
    attention, forward = part.self_attn, part.mlp
    head_norm = model.config.head_norm
    return {
        "norm": array(part.input_layernorm.weight),
        "query": matrix(attention.q_proj.weight),
        "key": matrix(attention.k_proj.weight),
        "value": matrix(attention.v_proj.weight),
        "query_bias": _bias(attention.q_proj),
        "key_bias": _bias(attention.k_proj),
        "value_bias": _bias(attention.v_proj),
        "query_norm": array(attention.q_norm.weight) if head_norm else None,
        "key_norm": array(attention.k_norm.weight) if head_norm else None,
        "output": matrix(attention.o_proj.weight),
        "output_bias": _bias(attention.o_proj),
        "forward_norm": array(part.post_attention_layernorm.weight),
        "gate": matrix(forward.gate_proj.weight),
        "up": matrix(forward.up_proj.weight),
        "down": matrix(forward.down_proj.weight),
    }


def _bias(projection: torch.nn.Linear) -> Array | None:
    return None if projection.bias is None else array(projection.bias)


@compiled()
def _run_layers(
    rows: Array,
    layers: Array,
    kind: Array,
    heads: int,
    kv_heads: int,
    size: int,
    forward: int,
    epsilon: float,
    sequences: Array,
    cos: Array,
    sin: Array,
    work: Array,
) -> None:
    """Run rows [M, H] through the layers, in place.

    layers: a record of the addresses of each one's parameters, of `_SHAPES`; kind: what matrices hold;
    sequences: a record of each, of `SEQUENCE`; cos and sin [*, D] of all positions up to the highest; work:
    the decoder's memory.
    """
    count, hidden = rows.shape
    of_queries, of_keys = heads * size, kv_heads * size
    normed, end = plane(work, 0, count, hidden)
    queries, end = plane(work, end, count, of_queries)
    keys, end = plane(work, end, count, of_keys)
    values, end = plane(work, end, count, of_keys)
    mixed, end = plane(work, end, count, of_queries)
    gates, end = plane(work, end, count, forward)
    ups, end = plane(work, end, count, forward)
    scores = work[end:]
    for layer in range(layers.shape[0]):
        part = layers[layer]
        normalise(rows, vector(part.norm, hidden), epsilon, normed)
        multiply(matrix_at(part.query, of_queries, hidden, kind), normed, queries)
        multiply(matrix_at(part.key, of_keys, hidden, kind), normed, keys)
        multiply(matrix_at(part.value, of_keys, hidden, kind), normed, values)
        add(queries, vector(part.query_bias, of_queries))
        add(keys, vector(part.key_bias, of_keys))
        add(values, vector(part.value_bias, of_keys))
        if part.query_norm:
            normalise_heads(queries, vector(part.query_norm, size), epsilon)
            normalise_heads(keys, vector(part.key_norm, size), epsilon)
        for m in range(count):
            one = sequences[m]
            cache = cache_at(one.memory, layers.shape[0], kv_heads, one.room, size)
            attend(
                queries[m], keys[m], values[m], cos[one.position], sin[one.position],
                cache[layer], one.first, one.position, scores, mixed[m],
            )  # fmt: skip
        multiply(matrix_at(part.output, hidden, of_queries, kind), mixed, normed)
        add(rows, vector(part.output_bias, hidden))
        add_rows(rows, normed)
        normalise(rows, vector(part.forward_norm, hidden), epsilon, normed)
        multiply(matrix_at(part.gate, forward, hidden, kind), normed, gates)
        multiply(matrix_at(part.up, forward, hidden, kind), normed, ups)
        gate(gates, ups)
        multiply(matrix_at(part.down, hidden, forward, kind), gates, normed)
        add_rows(rows, normed)


@compiled()
def _score(
    rows: Array,
    norm: Array,
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
    normalise(rows, norm, epsilon, normed)
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
    layers, angles = np.zeros(0, dtype=record(_SHAPES)), np.zeros((1, 2), dtype=np.float32)
    _run_layers(rows, layers, kind_of(held), 1, 1, 2, 2, 1.0, sequences, angles, angles, row)
    _score(rows, row, 1.0, kind_of(held), row, rows, np.zeros(0, dtype=np.int64), np.zeros(0))
