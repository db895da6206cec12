"""Know processes for certain: a pid alone may have been given to somebody else since."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_START_TIME_FIELD = 19
_STATE_FIELD = 0
_LIBC = ctypes.CDLL(None, use_errno=True)

STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that was started: `start_ticks` (since boot) tells it from a later one with the same pid."""

    name: str
    pid: int
    start_ticks: int

    def alive(self) -> bool:
        """Tell whether this very process runs still."""
        return start_ticks(self.pid) == self.start_ticks


def identify(name: str, pid: int) -> Process | None:
    """Return the process that has `pid` now, None if there is none."""
    ticks = start_ticks(pid)
    return None if ticks is None else Process(name=name, pid=pid, start_ticks=ticks)


def start_ticks(pid: int) -> int | None:
    """Return when the process with `pid` was started, in clock ticks since boot; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[_STATE_FIELD] in ("Z", "X") else int(fields[_START_TIME_FIELD])


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies; for use as `preexec_fn`."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_with_parent(parent: int) -> bool:
    """Have the kernel ask this process to end (SIGTERM) when its parent dies; False if that is dead already.

    The kernel takes the thread that started this process for its parent (prctl(2), PR_SET_PDEATHSIG).
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return os.getppid() == parent


def stop_all(processes: Iterable[Process], *, timeout_s: float = STOP_TIMEOUT_S) -> list[Process]:
    """Ask all of `processes` to end, kill what does not in time, and return those that ran."""
    running = [process for process in processes if process.alive()]
    descriptors: dict[int, Process] = {}
    for process in running:
        with suppress(ProcessLookupError):
            descriptors[os.pidfd_open(process.pid)] = process
    try:
        # a pid may have changed hands before it was opened; from here on it cannot
        for descriptor in [number for number, process in descriptors.items() if not process.alive()]:
            os.close(descriptor)
            del descriptors[descriptor]
        _signal(descriptors, signal.SIGTERM)
        left = _wait(descriptors, timeout_s)
        _signal(left, signal.SIGKILL)
        _wait(left, timeout_s)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return running


def _signal(descriptors: Iterable[int], number: signal.Signals) -> None:
    for descriptor in descriptors:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)


def _wait(descriptors: Iterable[int], timeout_s: float) -> list[int]:
    """Wait until the processes behind all `descriptors` have ended; return those that have not."""
    waiting = set(descriptors)
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    deadline_s = time.monotonic() + timeout_s
    while waiting and (left_s := deadline_s - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left_s * 1000):
            poll.unregister(descriptor)
            waiting.discard(descriptor)
    return list(waiting)


def stop_process(process: subprocess.Popen[bytes], *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """End a child: ask, wait, kill."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout_s)


def tail(path: Path, *, lines: int = 15) -> str:
    """Return the last lines of a log file."""
    try:
        text = path.read_bytes()[-20_000:].decode("utf-8", errors="replace")
    except OSError as error:
        return f"({path}: {error.strerror})"
    return "\n".join(text.splitlines()[-lines:]) or f"({path} is empty)"
