"""The peers' virtual environments: pinned, made once, kept in a cache folder."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from orchestrator.config import cache_directory

_INSTALL_TIMEOUT_S = 900


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Let the command line say where the environments are kept."""
    cache = cache_directory() / "peers"
    parser.add_argument("--cache", type=Path, default=cache, help="where the peers' environments are kept")


def python_of(peer: str, cache: Path, *, make: bool, pins: Path) -> Path | None:
    """Give the interpreter of the environment of `peer`; None if there is none and none is to be made.

    `pins`: the folder whose `<peer>.txt` lists what it holds.

    Raises:
        RuntimeError: it cannot be made; the text has what pip said.
    """
    wanted = pins / f"{peer}.txt"
    version = hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]
    folder = cache / f"{peer}-py{sys.version_info.major}.{sys.version_info.minor}-{version}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    if not make:
        return None
    print(f"installing {peer} into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, "-r", wanted], capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{peer} was not installed within {_INSTALL_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise RuntimeError(f"{peer} cannot be installed: {done.stderr.strip()[-500:]}")
    (folder / "complete").touch()
    return python
