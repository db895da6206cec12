"""Compile loops over arrays with numba: at their first call, without the interpreter's lock, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit

Function = Callable[..., Any]

_WRITERS = (
    "compiling.py",
    "models/addressed.py",
    "models/halves.py",
    "models/kernels.py",
    "models/vectors.py",
)
"""Files whose machine code is in the loops of other files, too. Numba looks at a loop's own file alone."""


def compiled(*flags: str) -> Callable[[Function], Function]:
    """Return a decorator; `flags`: LLVM's fast-math flags that the loop may use (none: IEEE)."""

    def compile_it(function: Function) -> Function:
        try:
            return njit(cache=True, nogil=True, fastmath=set(flags) or False)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            return njit(nogil=True, fastmath=set(flags) or False)(function)  # type: ignore[no-any-return]

    return compile_it


def kept_in(package: Path) -> Path:
    """Return where compiled loops are kept: elsewhere when what writes their machine code has changed."""
    writers = b"".join((package / name).read_bytes() for name in _WRITERS)
    return package / "__pycache__" / f"compiled-{hashlib.sha256(writers).hexdigest()[:12]}"


if not config.CACHE_DIR:  # NUMBA_CACHE_DIR; if the folder cannot be written, numba looks for another
    config.CACHE_DIR = str(kept_in(Path(__file__).parent))
