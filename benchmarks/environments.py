"""The peers' virtual environments: pinned, made once, kept in a cache folder."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.config import cache_directory

_INSTALL_TIMEOUT_S = 900
_BUILD_TIMEOUT_S = 1800
_BUILD_JOBS = 2
_LOOK_S = 0.2
_TELL_EVERY_S = 15
_LOG_END_BYTES = 4096


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Let the command line say where the environments are kept."""
    cache = cache_directory() / "peers"
    parser.add_argument("--cache", type=Path, default=cache, help="where the peers' environments are kept")


def python_of(peer: str, cache: Path, *, make: bool, pins: Path) -> Path | None:
    """Give the interpreter of the environment of `peer`; None if there is none and none is to be made.

    `pins`: the folder whose `<peer>.txt` lists what it holds, and whose `<peer>-built.txt`, if there is one,
    what is built on this machine with the help of that.

    Raises:
        RuntimeError: it cannot be made; the text has what pip said.
    """
    wanted, built = pins / f"{peer}.txt", pins / f"{peer}-built.txt"
    lists = [path for path in (wanted, built) if path.exists()]
    version = hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()[:12]
    folder = cache / f"{peer}-py{sys.version_info.major}.{sys.version_info.minor}-{version}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    if not make:
        return None
    if built in lists:
        _check_compiler(peer)
    print(f"installing {peer} into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
    _run([*pip, "-r", str(wanted)], peer, folder / "install.log", timeout_s=_INSTALL_TIMEOUT_S)
    if built in lists:
        # A wheel from pip's cache might be another machine's, or built another way.
        build = ["--verbose", "--no-build-isolation", "--no-cache-dir", "--require-hashes", "-r", str(built)]
        _run(["nice", "-n", "10", *pip, *build], peer, folder / "build.log", timeout_s=_BUILD_TIMEOUT_S)
    (folder / "complete").touch()
    return python


def _check_compiler(peer: str) -> None:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise RuntimeError(
            f"{peer} is built from its source, and there is no {compiler} on this machine; "
            "install a C++ compiler (Debian: g++) or name one in CXX"
        )


def _run(command: Sequence[str], peer: str, log: Path, *, timeout_s: float) -> None:
    """Run pip to its end and tell how far a build is; all of it ends with this call."""
    environment = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": str(min(_BUILD_JOBS, os.cpu_count() or 1))}
    now_s = time.monotonic()
    deadline_s, tell_at_s = now_s + timeout_s, now_s + _TELL_EVERY_S
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    try:
        while process.poll() is None:
            now_s = time.monotonic()
            if now_s > deadline_s:
                raise RuntimeError(
                    f"{peer} was not installed within {timeout_s:g} s; {log} has what was said"
                )
            if now_s > tell_at_s:
                tell_at_s = now_s + _TELL_EVERY_S
                print(f"installing {peer}: {progress(_end_of(log)) or 'going on'}", file=sys.stderr)
            time.sleep(_LOOK_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{peer} cannot be installed: {_end_of(log).strip()[-500:]} (all of it: {log})")


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_END_BYTES))
        return file.read().decode(errors="replace")


def progress(text: str) -> str | None:
    """Find how far ninja is by the last of its lines; None if it says nothing."""
    found = re.findall(r"^\s*\[(\d+)/(\d+)\]", text, flags=re.MULTILINE)
    return f"step {found[-1][0]} of {found[-1][1]}" if found else None
