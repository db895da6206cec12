"""Texts that are found on every Python installation. No torch.

To pre-train: every other module of the standard library, program code with its documentation. To fine-tune:
English prose, the language reference of `pydoc_data.topics`, and the longer docstrings of the remaining
modules where more is asked for. The two share no document. Both are the same for the same Python version,
size and seed.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

_SHORTEST_DOCSTRING = 200
_LEFT_OUT = frozenset(
    {"test", "tests", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings", "idlelib"}
)


def finetune_text(max_bytes: int, seed: int) -> bytes:
    """Return up to `max_bytes` of English documentation (UTF-8), its documents in a seeded order.

    About 450 kB come at once; beyond that the standard library is parsed, which takes seconds.
    """
    documents = [topics[name] for name in sorted(topics)]
    documents += _first(_docstrings(_sources()[1::2]), max_bytes - _size(documents))
    return _joined(documents, max_bytes, seed)


def pretrain_text(max_bytes: int, seed: int) -> bytes:
    """Return up to `max_bytes` of Python modules and, up to half of it, docstrings, in a seeded order."""
    paths = _sources()[::2]
    random.Random(seed).shuffle(paths)
    prose = _first(_docstrings(paths), max_bytes // 2)
    code = _first((_read(path) for path in paths), max_bytes - _size(prose))
    return _joined(prose + code, max_bytes, seed)


def _first(documents: Iterable[str], size_bytes: int) -> list[str]:
    """Return as many documents as make up `size_bytes`, the last one whole."""
    taken: list[str] = []
    for document in documents:
        if size_bytes <= 0:
            break
        taken.append(document)
        size_bytes -= len(document.encode())
    return taken


def _size(documents: Iterable[str]) -> int:
    return sum(len(document.encode()) for document in documents)


def _joined(documents: list[str], max_bytes: int, seed: int) -> bytes:
    random.Random(seed).shuffle(documents)
    text = "\n\n".join(documents).encode()[:max_bytes]
    return text.decode(errors="ignore").encode()  # not within a character


def _sources() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    return [path for path in sorted(root.rglob("*.py")) if not _LEFT_OUT & set(path.relative_to(root).parts)]


def _read(path: Path) -> str:
    """Return a module's source, or nothing where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _docstrings(paths: Iterable[Path]) -> Iterator[str]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in paths:
        try:
            tree = ast.parse(_read(path))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            if text and len(text) >= _SHORTEST_DOCSTRING:
                yield text
