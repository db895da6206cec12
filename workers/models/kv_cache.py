"""The keys and values of one sequence, for the layers of one shard, within a budget of memory."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from workers.errors import WorkersError
from workers.models.model_config import ModelConfig

_BLOCK_TOKENS = 64
"""A cache grows by doubling, but never by less than this."""


class CacheError(WorkersError):
    """A sequence cannot be taken further on this node; `code` is for programs."""

    code = "cache"


class OutOfMemory(CacheError):
    """What was asked for does not fit what the node may hold; the text has the figures."""

    code = "out-of-memory"


class ContextExceeded(CacheError):
    """A sequence is longer than the deployment's context."""

    code = "context-exceeded"


class MissingRows(CacheError):
    """Rows arrive that stand further on than what is cached."""

    code = "missing-rows"


class Budget(Protocol):
    """Where a cache takes its bytes from."""

    def reserve(self, size_bytes: int, purpose: str) -> None:
        """Take bytes, or raise OutOfMemory and take none."""

    def release(self, size_bytes: int) -> None:
        """Give bytes back."""


class MemoryBudget:
    """Bytes that a node may hold of parameters and caches; thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used_bytes = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """Bytes reserved now."""
        return self._used_bytes

    def reserve(self, size_bytes: int, purpose: str) -> None:
        """Take bytes from the budget; raises OutOfMemory if they are not left, and then takes none."""
        with self._lock:
            if self._used_bytes + size_bytes > self.limit_bytes:
                raise OutOfMemory(
                    f"{purpose} needs {size_bytes} bytes; the node may hold {self.limit_bytes} and "
                    f"{self._used_bytes} are in use: give it fewer layers or a shorter context"
                )
            self._used_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Give bytes back."""
        with self._lock:
            self._used_bytes -= size_bytes


class SequenceReserve:
    """A part of a budget kept free for caches, so that one sequence of full length always fits.

    Takes from the budget whichever is more: what was set aside, or what the caches use, which is never more
    than `limit_bytes`.
    """

    def __init__(self, budget: Budget) -> None:
        self.limit_bytes: int | None = None
        self._budget = budget
        self._set_aside_bytes = 0
        self._used_bytes = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """Bytes that caches have now."""
        return self._used_bytes

    @property
    def idle_bytes(self) -> int:
        """Bytes set aside that no cache has."""
        return max(0, self._set_aside_bytes - self._used_bytes)

    def set_aside(self, size_bytes: int, purpose: str, *, limit_bytes: int | None = None) -> None:
        """Keep this many bytes for caches from now on, and let them have no more than a limit.

        Raises OutOfMemory and changes nothing.
        """
        if limit_bytes is not None and size_bytes > limit_bytes:
            raise OutOfMemory(
                f"{purpose} needs {size_bytes} bytes; of the deployment's kv_cache_bytes {limit_bytes} are "
                "this node's: raise it or shorten context_tokens"
            )
        with self._lock:
            self._move(size_bytes, self._used_bytes, purpose)
            self.limit_bytes = limit_bytes

    def reserve(self, size_bytes: int, purpose: str) -> None:
        """Take bytes for a cache, of those set aside first; raises OutOfMemory and takes none."""
        with self._lock:
            if self.limit_bytes is not None and self._used_bytes + size_bytes > self.limit_bytes:
                raise OutOfMemory(
                    f"{purpose} needs {size_bytes} bytes; of the deployment's kv_cache_bytes "
                    f"{self.limit_bytes} are this node's and {self._used_bytes} are in use"
                )
            self._move(self._set_aside_bytes, self._used_bytes + size_bytes, purpose)

    def release(self, size_bytes: int) -> None:
        """Give a cache's bytes back."""
        with self._lock:
            self._move(self._set_aside_bytes, self._used_bytes - size_bytes, "less")

    def _move(self, set_aside_bytes: int, used_bytes: int, purpose: str) -> None:
        more = max(set_aside_bytes, used_bytes) - max(self._set_aside_bytes, self._used_bytes)
        if more > 0:
            self._budget.reserve(more, purpose)
        else:
            self._budget.release(-more)
        self._set_aside_bytes, self._used_bytes = set_aside_bytes, used_bytes


class Held(NamedTuple):
    """The memory of a cache, and where it lies: rows [layers, 2 (keys, values), K, room, D], fp32.

    `layout` is (layers, K, D). The address is good for as long as the rows are held.
    """

    rows: np.ndarray[Any, Any]
    address: int
    room: int
    layout: tuple[int, int, int]


class KvCache:
    """Keys and values of one sequence in layers [first_layer, end_layer), fp32.

    Memory is allocated as the sequence grows (doubling, up to `limit_tokens`) and taken from the budget
    before it is allocated. All layers grow together: `extend` is called for each in turn with the same rows.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        first_layer: int,
        end_layer: int,
        limit_tokens: int,
        budget: Budget | None = None,
    ) -> None:
        self._config = config
        self._layers = range(first_layer, end_layer)
        self._limit_tokens = limit_tokens
        self._budget = budget
        self._hold(self._allocate(0))
        self._filled = [0] * len(self._layers)

    @property
    def tokens(self) -> int:
        """Rows that every layer holds."""
        return min(self._filled, default=0)

    @property
    def size_bytes(self) -> int:
        """Bytes taken from the budget."""
        return self._size_bytes(self._rows.shape[4])

    def go_to(self, position: int) -> None:
        """Forget the rows from `position` on; raises MissingRows if the cache does not reach so far."""
        if position > self.tokens:
            raise MissingRows(f"rows from {position} on arrive, but only {self.tokens} are cached")
        self._filled = [position] * len(self._layers)

    def make_room(self, tokens: int) -> None:
        """Allocate for `tokens` more rows now, so that `extend` cannot fail halfway through the layers.

        Raises:
            ContextExceeded: the sequence would be longer than `limit_tokens`.
            OutOfMemory: the budget does not have the bytes.
        """
        needed = self.tokens + tokens
        if needed > self._limit_tokens:
            raise ContextExceeded(
                f"{needed} tokens exceed the context of {self._limit_tokens}; shorten prompt or answer"
            )
        if needed > self._rows.shape[4]:
            self._grow(needed)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values [1, K, T, D] to `layer`; return views of all its rows, [1, K, S, D]."""
        index = layer - self._layers.start
        start, end = self._filled[index], self._filled[index] + keys.shape[2]
        if end > self._rows.shape[4]:
            self.make_room(keys.shape[2])
        self._rows[index, 0, :, :, start:end] = keys
        self._rows[index, 1, :, :, start:end] = values
        self._filled[index] = end
        return self._rows[index, 0, :, :, :end], self._rows[index, 1, :, :, :end]

    @property
    def held(self) -> Held:
        """The memory of all layers now; another one when the cache has grown or was freed.

        `make_room` makes it wide enough. The next row goes where those that are held end; `added_one` counts
        it.
        """
        return self._held

    def added_one(self) -> None:
        """Count a row that was written to every layer's memory."""
        self._filled = [filled + 1 for filled in self._filled]

    def free(self) -> None:
        """Give the memory back; the cache is empty afterwards."""
        if self._budget:
            self._budget.release(self.size_bytes)
        self._hold(self._allocate(0))
        self._filled = [0] * len(self._layers)

    def _hold(self, rows: Tensor) -> None:
        self._rows = rows
        array = rows[:, :, 0].numpy()
        layers, _, heads, room, size = array.shape
        self._held = Held(array, array.ctypes.data, room, (layers, heads, size))

    def _grow(self, needed: int) -> None:
        capacity = self._rows.shape[4]
        target = min(self._limit_tokens, max(needed, 2 * capacity, _BLOCK_TOKENS))
        if self._budget:
            self._budget.reserve(
                self._size_bytes(target) - self._size_bytes(capacity), f"a cache of {target} tokens"
            )
        grown = self._allocate(target)
        grown[:, :, :, :, :capacity] = self._rows
        self._hold(grown)

    def _size_bytes(self, tokens: int) -> int:
        return cache_bytes(self._config, layers=len(self._layers), tokens=tokens)

    def _allocate(self, tokens: int) -> Tensor:
        """Return [layers, 2 (keys, values), 1, K, tokens, D]."""
        return torch.empty(len(self._layers), 2, 1, self._config.kv_heads, tokens, self._config.head_size)


def cache_bytes(config: ModelConfig, *, layers: int, tokens: int) -> int:
    """Return the bytes of the caches of one sequence of `tokens` tokens in `layers` layers."""
    return layers * tokens * config.kv_bytes_per_token_and_layer
