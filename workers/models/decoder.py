"""Decoding with a model, or a part of it, by the compiled arithmetic of `kernels`, on its own parameters.

All layers are one compiled call, whatever the number of sequences (docs/adr/0026): parameters and caches go
into it by their addresses, and what is computed on the way lies in memory that is used again.

Shape letters: M sequences with one new row each, H hidden, N query heads, K key/value heads, D head size, V
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from workers import memory
from workers.models import addressed
from workers.models.chain import Chain
from workers.models.kv_cache import Held
from workers.models.precision import as_array, widened

Array = np.ndarray[Any, Any]
SEQUENCE = addressed.record(("memory", "room", "position", "first"))
"""Of a sequence: its cache's address and room, where its new row stands, and the first row that this sees."""


class RowCache(Protocol):
    """Keys and values of one sequence, of the layers held here."""

    @property
    def held(self) -> Held:
        """The memory of all layers now, with room for the row after those that are held."""

    def added_one(self) -> None:
        """Take note that every layer has got its next row."""


class Decoder(ABC):
    """Runs new rows of sequences through a model, whose parameters it shares; one thread at a time.

    How the layers of a family are computed is told by the classes of the families.
    """

    def __init__(self, model: Chain, *, numbers_per_row: int) -> None:
        """`numbers_per_row` are kept of each row on its way through a layer, scores of attention apart."""
        config = model.config
        self._layout = len(model.layer_range), config.kv_heads, config.head_size
        self._hidden_size = config.hidden_size
        self._scores = config.heads // config.kv_heads * config.context_tokens
        self._numbers_per_row = numbers_per_row
        self._vocabulary_size = config.vocabulary_size if model.head else 0
        self._most = 0

    @abstractmethod
    def embed(self, tokens: Sequence[int], positions: Sequence[int]) -> Array:
        """Return the rows [T, H] of tokens that stand at `positions`, fresh; the head only."""

    def run(self, rows: Array, positions: Sequence[int], caches: Sequence[RowCache]) -> None:
        """Run rows [M, H], the next of each sequence, at `positions`, through the layers; in place.

        Raises:
            ValueError: rows or a cache are not what they must be; nothing is changed then.
        """
        held = [cache.held for cache in caches]  # the memory stays as long as this list does
        self._check(rows, positions, held)
        self._make_room(len(rows))
        self._sequences[: len(rows)] = [
            (one.address, one.room, position, self._first_seen(position))
            for one, position in zip(held, positions, strict=True)
        ]
        self._run(rows, positions)
        for cache in caches:
            cache.added_one()

    def logits(self, rows: Array) -> Array:
        """Return the logits [M, V] of rows [M, H] that have passed all layers, fresh; the head only."""
        self._check_rows(rows, len(rows))
        self._make_room(len(rows))
        logits = memory.empty((len(rows), self._vocabulary_size))
        self._score(rows, logits, self._tokens[:0], self._margins[:0])
        return logits

    def best(self, rows: Array) -> list[tuple[int, float]]:
        """Return the best token after each of rows [M, H] that have passed all layers; the head only.

        With it, by how much it beats the second; NaN if any of the row's logits is not finite.
        """
        self._check_rows(rows, len(rows))
        self._make_room(len(rows))
        self._score(rows, self._logits, self._tokens, self._margins)
        count = len(rows)
        return list(zip(self._tokens[:count].tolist(), self._margins[:count].tolist(), strict=True))

    @abstractmethod
    def _run(self, rows: Array, positions: Sequence[int]) -> None:
        """Run rows [M, H] of the first M of `_sequences` through the layers; in place."""

    @abstractmethod
    def _score(self, rows: Array, logits: Array, tokens: Array, margins: Array) -> None:
        """Set the first M of logits [*, V] to those of rows [M, H]; of tokens and margins to the best ones.

        They may be of no length.
        """

    def _first_seen(self, _position: int) -> int:
        """Return the first position that the row at a position sees."""
        return 0

    def _check(self, rows: Array, positions: Sequence[int], held: Sequence[Held]) -> None:
        """Refuse what would be written or read beyond its memory: compiled calls look at no bounds."""
        self._check_rows(rows, len(held))
        for one, position in zip(held, positions, strict=True):
            if not 0 <= position < one.room or one.layout != self._layout:
                raise ValueError(
                    f"a row at position {position} does not fit a cache of room {one.room} and (layers, "
                    f"heads, head size) {one.layout}; make room in one of {self._layout} first"
                )

    def _check_rows(self, rows: Array, count: int) -> None:
        if rows.shape != (count, self._hidden_size):
            raise ValueError(f"rows have the shape {rows.shape}; it must be {(count, self._hidden_size)}")

    def _make_room(self, count: int) -> None:
        """Have memory for so many sequences at once; it is kept for the next ones, and for fewer."""
        if count <= self._most:
            return
        self._sequences = np.zeros(count, dtype=SEQUENCE)
        self._work = memory.empty((count * self._numbers_per_row + self._scores,))
        self._logits = memory.empty((count if self._vocabulary_size else 0, self._vocabulary_size))
        self._tokens, self._margins = np.zeros(count, dtype=np.int64), np.zeros(count)
        self._most = count


def rows_of(table: Array, places: Sequence[int]) -> Array:
    """Return rows of a table of `as_array` in fp32, fresh."""
    return widened(table.take(places, axis=0))


def table(parameter: torch.Tensor) -> Array:
    """Return a table as `rows_of` takes it."""
    return as_array(parameter)


def matrix(parameter: torch.Tensor) -> Array:
    """Return a matrix as the kernels take it: half precision as int16."""
    found = array(parameter)
    return found.view(np.int16) if found.dtype == np.float16 else found


def array(parameter: torch.Tensor) -> Array:
    """Return a parameter's memory as the kernels take it; copied only if it is not in order or read-only."""
    return np.require(as_array(parameter), requirements=["C", "A", "W"])


def kind_of(held: torch.dtype) -> Array:
    """Return a matrix of one number, from which compiled calls take what matrices hold."""
    return matrix(torch.zeros(1, 1, dtype=held))
