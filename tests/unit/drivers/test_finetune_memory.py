"""Memory that is free goes back to the system."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest

from orchestrator.finetune.memory import give_back

PIECE_BYTES = 100_000
"""Below what glibc maps on its own (mallopt(3), M_MMAP_THRESHOLD), so that it comes from a heap."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_lies_free_between_what_is_used_goes_back_to_the_system() -> None:
    pieces = [np.ones(PIECE_BYTES, np.uint8) for _ in range(400)]
    del pieces[::2]  # what stays keeps the heap from shrinking at its end
    before = resident_bytes()
    give_back()
    assert resident_bytes() < before - 100 * PIECE_BYTES
    assert all(piece[0] == 1 for piece in pieces)


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    give_back()
