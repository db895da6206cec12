"""A node's own data: text and JSONL files in a folder. They are trained on here and never sent anywhere.

A `.jsonl` file has a JSON map on each line; its text is `text`, or `prompt` followed by `completion`. Every
other `.txt` or `.md` file is a text in UTF-8. The orchestrator's `data` is read the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from workers.errors import DataError

SUFFIXES = (".txt", ".md", ".jsonl")
MAX_FILES = 10_000
MAX_BYTES = 1 << 30


def read_folder(folder: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """Return the texts of a folder's files, in order of their paths, up to `max_bytes` of them.

    Raises:
        DataError: the folder or a file of it cannot be read, or holds nothing to train on.
    """
    try:
        paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    except OSError as error:
        raise DataError(f"local data {folder}: cannot be read: {error}") from error
    texts, left = [], max_bytes
    for path in paths[:MAX_FILES]:
        texts.append(read_text(path, max_bytes=left))
        left -= len(texts[-1].encode())
        if left <= 0:
            break
    if not any(texts):
        raise DataError(f"local data {folder}: no {', '.join(SUFFIXES)} files with text in it")
    return "\n\n".join(texts)


def read_text(path: Path, *, max_bytes: int) -> str:
    """Return the text of one file, of which `max_bytes` are read.

    Raises:
        DataError: it cannot be read, or is JSONL without text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(min(max_bytes, MAX_BYTES))
            cut_short = bool(file.read(1))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    text = content.decode("utf-8", errors="ignore")
    if path.suffix != ".jsonl":
        return text
    lines = text.splitlines()
    return "\n\n".join(_documents(lines[:-1] if cut_short else lines, path))


def _documents(lines: list[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: is not valid JSON: {error}") from error
        yield _document(item, path, number)


def _document(item: object, path: Path, number: int) -> str:
    parts = [item.get("text")] if isinstance(item, dict) and "text" in item else None
    if parts is None and isinstance(item, dict):
        parts = [item.get("prompt"), item.get("completion")]
    texts = [part for part in parts or [] if isinstance(part, str)]
    if not parts or len(texts) < len(parts):
        raise DataError(
            f"{path}, line {number}: has neither `text` nor `prompt` and `completion` as strings; give one"
        )
    return "".join(texts)
