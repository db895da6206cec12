"""Give memory that is free in this process back to the system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Have the C library return what it keeps for later; where it is not glibc's, nothing happens.

    Each thread that ever asked for memory has a heap of its own there (mallopt(3), M_ARENA_MAX), and what a
    dozen of them keep after parameters were packed, hashed and sent adds up to megabytes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
