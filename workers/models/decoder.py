"""Decoding with a model, or a part of it, by the compiled arithmetic of `kernels`, on its own parameters.

Shape letters: M sequences with one new row each, H hidden, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from workers import memory
from workers.models import kernels
from workers.models.chain import Chain
from workers.models.llama import Llama
from workers.models.precision import as_array, widened

Array = np.ndarray[Any, Any]
_NONE = np.zeros(0, dtype=np.float32)
_MOST_THREADS = 2
"""With more, torch's own products read memory faster than one core can."""


class RowCache(Protocol):
    """Keys and values of one sequence, of the layers held here."""

    def room_for_one(self, layer: int) -> Array:
        """Return [2 (keys, values), K, room, D] of a layer, with room for the row after those it holds."""

    def added_one(self) -> None:
        """Take note that every layer has got its next row."""


def decoder_of(model: Chain) -> Decoder | None:
    """Return what is to decode with a model; None where the model itself is to."""
    few = torch.get_num_threads() <= _MOST_THREADS
    on_cpu = next(model.parameters()).device.type == "cpu"
    return Decoder(model) if isinstance(model, Llama) and few and on_cpu else None


@functools.cache
def compile_kernels(held: torch.dtype = torch.float32) -> None:
    """Compile the kernels for matrices held so, or read them from disk: about five seconds the first time."""
    row, cache = np.zeros(2, dtype=np.float32), np.zeros((2, 1, 1, 2), dtype=np.float32)
    matrix = _matrix(torch.zeros(2, 2, dtype=held))
    for count in (1, 2, 4):
        rows = np.zeros((count, 2), dtype=np.float32)
        kernels.project(rows, row, 1.0, matrix, matrix, matrix, row, row, row, rows, rows, rows, rows)
        kernels.normalise_heads(rows, row, 1.0)
        kernels.finish(rows, rows, matrix, row, row, 1.0, matrix, matrix, matrix, rows, rows, rows)
    kernels.attend(row, row, row, row, row, cache, 0, 0, row, row)
    kernels.best(row)


class Decoder:
    """Runs new rows of sequences through `model`, whose parameters it shares; one thread at a time."""

    def __init__(self, model: Llama) -> None:
        """Compile what is not compiled yet."""
        compile_kernels(next(value.dtype for value in model.parameters() if value.dim() == 2))
        self._config = model.config
        self._rotary = model.rotary
        self._layers = [_layer(model, layer) for layer in model.layer_range]
        self._numbers = model.layer_range
        self._head = _head(model) if model.head else None
        self._table = as_array(model.model.embed_tokens.weight) if model.head else None
        self._scratch = _Scratch(model, 1)
        self._model = model

    def embed(self, tokens: Sequence[int]) -> Array:
        """Return the rows [T, H] of tokens, fresh; the head only."""
        assert self._table is not None
        return widened(self._table[tokens])

    def run(self, rows: Array, positions: Sequence[int], caches: Sequence[RowCache]) -> None:
        """Run rows [M, H], the next of each sequence, at `positions`, through the layers; in place."""
        scratch = self._room(len(rows))
        epsilon = self._config.norm_epsilon
        angles = [self._rotary.row(position) for position in positions]
        firsts = [self._first_seen(position) for position in positions]
        places = list(zip(firsts, positions, angles, caches, strict=True))
        for layer, part in zip(self._numbers, self._layers, strict=True):
            kernels.project(
                rows, part.norms[0], epsilon, *part.inputs, *part.input_biases,
                scratch.normed, scratch.queries, scratch.keys, scratch.values,
            )  # fmt: skip
            if self._config.head_norm:
                kernels.normalise_heads(scratch.queries, part.head_norms[0], epsilon)
                kernels.normalise_heads(scratch.keys, part.head_norms[1], epsilon)
            for m, (first, position, (cos, sin), cache) in enumerate(places):
                kernels.attend(
                    scratch.queries[m], scratch.keys[m], scratch.values[m], cos, sin,
                    cache.room_for_one(layer), first, position, scratch.scores, scratch.mixed[m],
                )  # fmt: skip
            kernels.finish(
                rows, scratch.mixed, part.output, part.output_bias, part.norms[1], epsilon, *part.forward,
                scratch.normed, scratch.gates, scratch.ups,
            )  # fmt: skip
        for cache in caches:
            cache.added_one()

    def logits(self, rows: Array) -> Array:
        """Return the logits [M, V] of rows [M, H] that have passed all layers; the head only."""
        assert self._head is not None
        norm, table = self._head
        normed = self._room(len(rows)).normed
        logits = memory.empty((len(rows), len(table)))
        kernels.normalise(rows, norm, self._config.norm_epsilon, normed)
        kernels.multiply(table, normed, logits)
        return logits

    def _first_seen(self, position: int) -> int:
        """Return the first position that the row at `position` sees."""
        window = self._config.window
        return 0 if window is None else max(0, position + 1 - window)

    def _room(self, count: int) -> _Scratch:
        if len(self._scratch.normed) != count:
            self._scratch = _Scratch(self._model, count)
        return self._scratch


class _Scratch:
    """What is computed on the way, for M sequences at once."""

    def __init__(self, model: Llama, count: int) -> None:
        config = model.config
        queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
        self.normed = memory.empty((count, config.hidden_size))
        self.queries = memory.empty((count, queries))
        self.keys = memory.empty((count, keys))
        self.values = memory.empty((count, keys))
        self.mixed = memory.empty((count, queries))
        self.gates = memory.empty((count, config.feed_forward_size))
        self.ups = memory.empty((count, config.feed_forward_size))
        self.scores = memory.empty((config.context_tokens,))


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
        norms=(_array(part.input_layernorm.weight), _array(part.post_attention_layernorm.weight)),
        inputs=tuple(_matrix(projection.weight) for projection in inputs),
        input_biases=tuple(_bias(projection) for projection in inputs),
        head_norms=tuple(_array(norm.weight) for norm in head_norms),
        output=_matrix(attention.o_proj.weight),
        output_bias=_bias(attention.o_proj),
        forward=tuple(
            _matrix(projection.weight)
            for projection in (forward.gate_proj, forward.up_proj, forward.down_proj)
        ),
    )


def _bias(projection: torch.nn.Linear) -> Array:
    return _NONE if projection.bias is None else _array(projection.bias)


def _head(model: Llama) -> tuple[Array, Array]:
    table = model.model.embed_tokens.weight if model.config.tied_embeddings else model.lm_head.weight
    return _array(model.model.norm.weight), _matrix(table)


def _matrix(parameter: torch.Tensor) -> Array:
    """Return a matrix as the kernels take it: half precision as int16."""
    array = _array(parameter)
    return array.view(np.int16) if array.dtype == np.float16 else array


def _array(parameter: torch.Tensor) -> Array:
    """Return a parameter's memory as the kernels take it; copied only if it is not in order or read-only."""
    return np.require(as_array(parameter), requirements=["C", "A", "W"])
