"""Compile loops over arrays with numba: at their first call, without the interpreter's lock, kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

Function = Callable[..., Any]


def compiled(*flags: str) -> Callable[[Function], Function]:
    """Return a decorator; `flags`: LLVM's fast-math flags that the loop may use (none: IEEE)."""

    def compile_it(function: Function) -> Function:
        try:
            return njit(cache=True, nogil=True, fastmath=set(flags) or False)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            return njit(nogil=True, fastmath=set(flags) or False)(function)  # type: ignore[no-any-return]

    return compile_it
