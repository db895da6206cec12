"""The form of every result file: where it was measured, how, the rows, and the targets computed from them."""

from __future__ import annotations

import json
import operator
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One figure against its limit; an unknown value (None) is not met."""

    name: str
    value: float | bool | None
    op: str
    limit: float | bool

    def __post_init__(self) -> None:
        if self.op not in _OPERATORS:
            raise ValueError(f"target {self.name}: op {self.op!r}; use one of {', '.join(_OPERATORS)}")

    @property
    def met(self) -> bool:
        """Whether the value keeps the limit."""
        return self.value is not None and _OPERATORS[self.op](self.value, self.limit)

    def to_json(self) -> dict[str, Any]:
        """Return the target as it stands in a result file."""
        return {**asdict(self), "met": self.met}


def machine() -> dict[str, Any]:
    """Describe the machine that measured."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """Name the commit that was measured, with `+changes` if the tree differs from it; None outside git."""
    root = Path(__file__).resolve().parent.parent
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    return f"{head}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else head


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file whole or not at all."""
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-c", f"safe.directory={root}", *words],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
