"""Frames that come again and again with the same prefix and header, word for word: checked once. Pure.

A row that goes round a ring comes in such a frame, and what is done for each costs ten times what it would
warm: the stage before it has just read its weights through all caches (docs/adr/0025).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from workers.wire.frames import PREFIX, Frame, Header

MOST_KNOWN = 64
MOST_LENGTHS = 4
LONGEST_HEADER_BYTES = 512


class _Known(NamedTuple):
    header: Header
    size_bytes: int
    """Of the whole frame."""
    tensors: tuple[tuple[str, tuple[int, ...], np.dtype[Any], int], ...]
    """Name, shape, kind of number, and where in the frame it begins."""


class KnownFrames:
    """What was seen on one connection; used by the thread that receives."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return len(self._known)

    def header(self, head: bytes) -> Header | None:
        """Return the header of a frame that begins with these bytes, prefix and header; None if not known."""
        known = self._known.get(head)
        return None if known is None else known.header

    def learn(self, head: bytes, header: Header) -> None:
        """Keep a checked header, if frames like that may come again."""
        if len(head) - PREFIX.size > LONGEST_HEADER_BYTES or not header.of_constant_form:
            return
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        tensors, start = [], len(head)
        for spec in header.tensors:
            tensors.append((spec.name, spec.shape, spec.dtype, start))
            start += spec.size_bytes
        self._known[head] = _Known(header, start, tuple(tensors))
        if len(head) not in self._lengths:
            self._lengths = [len(head), *self._lengths[: MOST_LENGTHS - 1]]

    def take(self, read: memoryview, start: int, end: int) -> tuple[Frame, int] | None:
        """Return a known frame that stands whole in read[start:end], and its size; None if none does."""
        for length in self._lengths:
            known = self._known.get(bytes(read[start : start + length]))
            if known is not None:
                break
        else:
            return None
        header, size_bytes, tensors = known
        if size_bytes > end - start:
            return None
        # Copies: what was read is overwritten by what comes next.
        arrays = {
            name: np.ndarray(shape, dtype, read, start + offset).copy()
            for name, shape, dtype, offset in tensors
        }
        return Frame(header.kind, fields=header.fields, tensors=arrays), size_bytes
