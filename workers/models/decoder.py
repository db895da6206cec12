"""Decoding with a model, or a part of it, by the compiled arithmetic of `kernels`, on its own parameters.

Shape letters: M sequences with one new row each, H hidden, N query heads, K key/value heads, D head size, V
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from workers import memory
from workers.models import kernels
from workers.models.chain import Chain
from workers.models.precision import as_array, widened

Array = np.ndarray[Any, Any]
NONE = np.zeros(0, dtype=np.float32)


class RowCache(Protocol):
    """Keys and values of one sequence, of the layers held here."""

    def room_for_one(self, layer: int) -> Array:
        """Return [2 (keys, values), K, room, D] of a layer, with room for the row after those it holds."""

    def added_one(self) -> None:
        """Take note that every layer has got its next row."""


class Attending(NamedTuple):
    """One sequence's part of what is computed on the way: queries and mixed [N * D], keys, values [K * D]."""

    queries: Array
    keys: Array
    values: Array
    mixed: Array


class Decoder(ABC):
    """Runs new rows of sequences through a model, whose parameters it shares; one thread at a time.

    What the layers of a family do before and after their attention is told by the classes of the families.
    """

    def __init__(self, model: Chain) -> None:
        self._layers = model.layer_range
        group = model.config.heads // model.config.kv_heads
        self._scores = memory.empty((group * model.config.context_tokens,))
        self._made = 0

    @abstractmethod
    def embed(self, tokens: Sequence[int], positions: Sequence[int]) -> Array:
        """Return the rows [T, H] of tokens that stand at `positions`, fresh; the head only."""

    def run(self, rows: Array, positions: Sequence[int], caches: Sequence[RowCache]) -> None:
        """Run rows [M, H], the next of each sequence, at `positions`, through the layers; in place."""
        parts = self._ready(len(rows))
        angles = [self._angles(position) for position in positions]
        firsts = [self._first_seen(position) for position in positions]
        places = list(zip(parts, angles, firsts, positions, caches, strict=True))
        for place, layer in enumerate(self._layers):
            self._project(place, rows)
            for part, (cos, sin), first, position, cache in places:
                kernels.attend(
                    part.queries, part.keys, part.values, cos, sin,
                    cache.room_for_one(layer), first, position, self._scores, part.mixed,
                )  # fmt: skip
            self._finish(place, rows)
        for cache in caches:
            cache.added_one()

    @abstractmethod
    def logits(self, rows: Array) -> Array:
        """Return the logits [M, V] of rows [M, H] that have passed all layers; the head only."""

    @abstractmethod
    def _allocate(self, count: int) -> list[Attending]:
        """Make the memory of what is computed on the way, for so many sequences at once."""

    @abstractmethod
    def _project(self, place: int, rows: Array) -> None:
        """Compute queries, keys and values of rows [M, H] for the attention of a layer held here."""

    @abstractmethod
    def _finish(self, place: int, rows: Array) -> None:
        """Add to rows [M, H] what the attention of a layer gave, and what follows it there."""

    def _angles(self, _position: int) -> tuple[Array, Array]:
        """Return cos and sin, [D], by which a position's queries and keys are turned; empty: they are not."""
        return NONE, NONE

    def _first_seen(self, _position: int) -> int:
        """Return the first position that the row at a position sees."""
        return 0

    def _ready(self, count: int) -> list[Attending]:
        """Have memory for so many sequences at once."""
        if self._made != count:
            self._attending = self._allocate(count)
            self._made = count
        return self._attending


def embedded(table: torch.Tensor, places: Sequence[int]) -> Array:
    """Return rows of a table in fp32, fresh."""
    return widened(as_array(table)[places])


def matrix(parameter: torch.Tensor) -> Array:
    """Return a matrix as the kernels take it: half precision as int16."""
    found = array(parameter)
    return found.view(np.int16) if found.dtype == np.float16 else found


def array(parameter: torch.Tensor) -> Array:
    """Return a parameter's memory as the kernels take it; copied only if it is not in order or read-only."""
    return np.require(as_array(parameter), requirements=["C", "A", "W"])
