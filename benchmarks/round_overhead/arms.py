"""The arms: how each is started, and one round of it measured."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.round_overhead import model

_MARK = "UTOPIA_ROUND_OVERHEAD_ARM"
_START_TIMEOUT_S = 180.0
_ROUND_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0
_LOOK_S = 0.5
_PEERS = Path(__file__).parent / "peers"
_ERROR_CHARACTERS, _LAST_CHARACTERS = 1200, 600
_FIRST_ERROR = re.compile(
    r"^Traceback .*\n(?:\s.*\n)*.+|^.*(?:[Ee]rror|ERROR|Exception|refused|cannot)\b.*", re.MULTILINE
)
"""A traceback with the line after it that names the exception, or a line that looks like an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One arm: its name, how it is started, how many of its first rounds are dropped."""

    name: str
    workers: int
    command: tuple[str, ...]
    warm_up: int
    note: str | None = None


def ours(link: str, *, workers: int, quick: bool) -> Plan:
    """Plan our own arm, `plain` or `tls`."""
    command = (sys.executable, "-m", "benchmarks.round_overhead.ours", str(workers), link)
    extra = ("--quick",) if quick else ()
    return Plan(name=f"ours {link}", workers=workers, command=(*command, *extra), warm_up=3)


def gloo(*, workers: int, quick: bool) -> Plan:
    """Plan the floor; torch is the project's own."""
    command = (sys.executable, str(_PEERS / "gloo.py"), str(workers), _parameters(quick=quick))
    return Plan(name="gloo", workers=workers, command=command, warm_up=2)


def star(*, workers: int, quick: bool, certificates: Path | None) -> Plan:
    """Plan the floor of any server in the middle: its bytes without a sum, with TLS if `certificates`."""
    command = (sys.executable, str(_PEERS / "star.py"), str(workers), str(model.size_bytes(quick=quick)))
    extra = (str(certificates),) if certificates is not None else ()
    name = "star tls" if certificates is not None else "star plain"
    return Plan(name=name, workers=workers, command=(*command, *extra), warm_up=2, note="no sum, no checks")


def ray(python: Path, *, workers: int, quick: bool) -> Plan:
    """Plan raw Ray actors."""
    command = (str(python), str(_PEERS / "ray_actors.py"), str(workers), _parameters(quick=quick))
    return Plan(name="ray", workers=workers, command=command, warm_up=2, note="shared memory, no network")


def flower(
    python: Path, *, workers: int, quick: bool, certificates: Path | None, note: str | None = None
) -> Plan:
    """Plan Flower, with TLS if there are `certificates`."""
    sizes = ",".join(str(model.count(shape)) for shape in model.shapes(quick=quick).values())
    extra = (str(certificates),) if certificates is not None else ()
    return Plan(
        name="flower tls" if certificates is not None else "flower plain",
        workers=workers,
        command=(str(python), str(_PEERS / "flower.py"), str(workers), sizes, *extra),
        warm_up=2,
        note=note,
    )


def _parameters(*, quick: bool) -> str:
    return str(model.size_bytes(quick=quick) // 4)


class Arm:
    """A running arm: a server that takes commands, and its workers."""

    def __init__(self, plan: Plan, *, log: Path) -> None:
        """Start it and do its first rounds.

        Raises:
            RuntimeError: it ended or did not answer in time; the text has the end of what it said.
        """
        self.plan = plan
        self._mark = uuid.uuid4().hex
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                plan.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                bufsize=1,
                env={**os.environ, _MARK: self._mark},
            )
        try:
            self._answer(_START_TIMEOUT_S)
            for _ in range(plan.warm_up):
                self._command()
        except BaseException:
            self.stop()
            raise

    def round(self) -> dict[str, Any]:
        """Do a round; answers what it took."""
        cpu_s, received = self._cpu_s(), _lo_bytes()
        answer = self._command()
        return {
            "arm": self.plan.name,
            "workers": self.plan.workers,
            "cpu_s": self._cpu_s() - cpu_s,
            "lo_bytes": _lo_bytes() - received,
            "note": self.plan.note,
            **answer,
        }

    def stop(self) -> None:
        """End it and all its processes."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _command(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("round\n")
        except OSError as error:
            raise RuntimeError(f"{self.plan.name} has ended: {self._said()}") from error
        return self._answer(_ROUND_TIMEOUT_S)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        while not select.select([self._process.stdout], [], [], _LOOK_S)[0]:
            if self._process.poll() is not None:  # its workers may still hold the pipe open
                raise RuntimeError(f"{self.plan.name} has ended: {self._said()}")
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.plan.name} did not answer within {timeout_s:g} s: {self._said()}")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.plan.name} has ended: {self._said()}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def _said(self) -> str:
        return excerpt(self._log.read_text(errors="replace").strip()) or "it said nothing"

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _cpu_s(self) -> float:
        """Sum the CPU seconds of the arm's processes, to 10 ms each."""
        total = 0.0
        for process in self._processes():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total


def excerpt(text: str) -> str:
    """Give the first error of what an arm said, and its last words: others follow from the first."""
    if len(text) <= _ERROR_CHARACTERS + _LAST_CHARACTERS:
        return text
    last = text[-_LAST_CHARACTERS:]
    error = _FIRST_ERROR.search(text, endpos=len(text) - _LAST_CHARACTERS)
    return f"[...]{last}" if error is None else f"{error[0][-_ERROR_CHARACTERS:]}\n[...]{last}"


def _lo_bytes() -> int:
    """Count what `lo` of this namespace has carried; /sys may show another's."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_recv
