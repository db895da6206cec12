"""Run one network's links: `python -m topologies.links.emulator --plan FILE --socket FILE`.

Runs in the wires' namespace, as one process with one thread. It changes links while packets flow, and tells
how well it keeps up. Requests (topologies/rpc.py):

    {"call": "set", "direction": "h1-g1", "impairment": {"delay_s": 0.1}}   the rest stays as it is
    {"call": "report"}

**kept_up** is true when no packet was dropped for lack of room in the kernel's packet queue and, since the
start, 99 % of the delayed packets went on within `LATE_LIMIT_MS` of their due time. With netem the kernel
delays and does not tell how late, so there kept_up only means that the CPU pressure is below
`PRESSURE_LIMIT`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import logging
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from topologies.errors import EmulationError, SpecError
from topologies.links import netem, nfqueue, shaper
from topologies.links.wires import Direction
from topologies.rpc import Json, Reply, Server
from topologies.specs import Impairment

log = logging.getLogger(__name__)

LATE_LIMIT_MS = 5.0
PRESSURE_LIMIT = 0.8
_PRIORITY = 10
_PR_SET_TIMERSLACK = 29
_LONGEST_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the emulator starts with."""

    backend: str
    seed: int
    directions: tuple[Direction, ...]

    def to_json(self) -> str:
        """Write as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote."""
        document = json.loads(text)
        directions = tuple(_direction_from_json(item) for item in document["directions"])
        return cls(backend=document["backend"], seed=document["seed"], directions=directions)


def _direction_from_json(item: Json) -> Direction:
    """Read one direction that was written by `dataclasses.asdict`."""
    return Direction(**{**item, "impairment": Impairment(**item["impairment"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Commands to run, one after another, and what to do when they have succeeded."""

    commands: tuple[tuple[tuple[str, ...], str], ...]
    done: Callable[[], Json]
    reply: Reply


class Emulator:
    """The state of all links of one network, and the loop that runs them."""

    def __init__(self, plan: Plan, socket_path: Path) -> None:
        self._backend = plan.backend
        self._directions = {direction.name: direction for direction in plan.directions}
        self._lines = (
            nfqueue.DelayLines(plan.directions, seed=plan.seed) if plan.backend == "nfqueue" else None
        )
        self._server = Server(socket_path, self._handle)
        self._jobs: deque[_Job] = deque()
        self._running: tuple[_Job, int, subprocess.Popen[str], int] | None = None
        self._started_s = time.monotonic()
        self._stopping = False
        self.scheduling = "normal"

    def stop(self, *_: object) -> None:
        """End the loop soon; usable as a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Run until told to stop."""
        try:
            while not self._stopping:
                self._wait_and_step()
        finally:
            self._server.close()
            if self._lines:
                self._lines.close()

    def _wait_and_step(self) -> None:
        readers = self._server.readers()
        wait_s: float | None = _LONGEST_WAIT_S
        if self._lines:
            watch, line_wait_s = self._lines.wait()
            wait_s = _LONGEST_WAIT_S if line_wait_s is None else min(line_wait_s, _LONGEST_WAIT_S)
            if watch:
                readers.append(self._lines.socket.fileno())
        if self._running:
            readers.append(self._running[3])
        # select, not epoll: its timeout has microseconds
        readable, writable, _ = select.select(readers, self._server.writers(), [], wait_s)
        if self._lines:
            self._lines.step()
        if readable or writable:
            self._server.step(readable, writable)
        if self._running and self._running[3] in readable:
            self._finish_command()

    # --- requests

    def _handle(self, request: Json, reply: Reply) -> None:
        call = request.get("call")
        if call == "set":
            self._set(request, reply)
        elif call == "report":
            reply(self.report())
        else:
            raise EmulationError(f"unknown call {call!r}; known: set, report")

    def _set(self, request: Json, reply: Reply) -> None:
        direction = self._directions.get(str(request.get("direction")))
        if direction is None:
            raise EmulationError(f"there is no link direction {request.get('direction')!r}")
        try:
            after = replace(direction.impairment, **request["impairment"])
        except (TypeError, KeyError) as error:
            raise EmulationError(f"{direction.name}: not an impairment: {error}") from error
        except SpecError as error:
            raise EmulationError(f"{direction.name}: {error}") from error
        changed = replace(direction, impairment=after)

        def done() -> Json:
            self._directions[direction.name] = changed
            if self._lines:
                self._lines.change(direction.number, after)
            log.info("%s: %s", direction.name, after)
            return {"direction": direction.name, "impairment": asdict(after)}

        self._queue(_Job(commands=self._change_commands(direction, after), done=done, reply=reply))

    def _change_commands(
        self, direction: Direction, after: Impairment
    ) -> tuple[tuple[tuple[str, ...], str], ...]:
        before = direction.impairment
        backend = netem if self._backend == "netem" else shaper
        commands = []
        lines = backend.change_lines(direction, before, after)
        if lines:
            commands.append((("tc", "-batch", "-"), "\n".join(lines) + "\n"))
        if self._lines and nfqueue.needs_queue(after) and not self._lines.has_line(direction.number):
            self._lines.bind(direction.number, after)
            commands.append((iptables_restore(), rules_text([direction])))
        return tuple(commands)

    # --- commands, run beside the packets

    def _queue(self, job: _Job) -> None:
        self._jobs.append(job)
        if self._running is None:
            self._next_command(0)

    def _next_command(self, number: int) -> None:
        while self._jobs:
            job = self._jobs[0]
            if number < len(job.commands):
                self._start_command(job, number)
                return
            self._jobs.popleft()
            job.reply(job.done())
            number = 0

    def _start_command(self, job: _Job, number: int) -> None:
        command, text = job.commands[number]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its exit status tells why
            process.stdin.write(text)
            process.stdin.close()
        self._running = (job, number, process, os.pidfd_open(process.pid))

    def _finish_command(self) -> None:
        assert self._running is not None
        job, number, process, descriptor = self._running
        self._running = None
        os.close(descriptor)
        assert process.stdout is not None
        said = process.stdout.read()
        process.stdout.close()
        if process.wait() == 0:
            self._next_command(number + 1)
            return
        self._jobs.popleft()
        job.reply({"error": f"{' '.join(job.commands[number][0])}: {said.strip()}"})
        self._next_command(0)

    # --- report

    def report(self) -> Json:
        """Tell what was carried, how late, and whether that is good enough."""
        pressure, pressure_source = cpu_pressure()
        report: dict[str, Any] = {
            "backend": self._backend,
            "up_s": time.monotonic() - self._started_s,
            "scheduling": self.scheduling,
            "cpu_pressure_ratio": pressure,
            "cpu_pressure_source": pressure_source,
            "impairments": {name: asdict(item.impairment) for name, item in self._directions.items()},
        }
        if self._lines is None:
            unknown = "netem delays in the kernel, which does not tell how late"
            rule = f"CPU pressure is at most {PRESSURE_LIMIT}"
            return report | {
                "packets": None,
                "lost_packets": None,
                "overflow_packets": None,
                "late_packets": None,
                "lateness": None,
                "lateness_recent": None,
                "reason": unknown,
                "kept_up": pressure <= PRESSURE_LIMIT,
                "kept_up_rule": rule,
            }
        late = self._lines.lateness.since_start()
        overflow = self._lines.overflow_packets()
        return report | {
            "packets": self._lines.packets(),
            "lost_packets": self._lines.dropped(),
            "overflow_packets": overflow,
            "late_packets": self._lines.lateness.later_than(LATE_LIMIT_MS),
            "lateness": asdict(late),
            "lateness_recent": asdict(self._lines.lateness.recent(now_s=time.monotonic())),
            "reason": None,
            "kept_up": overflow == 0 and (late.p99_ms is None or late.p99_ms <= LATE_LIMIT_MS),
            "kept_up_rule": f"no overflow, and p99 of lateness since start is at most {LATE_LIMIT_MS:g} ms",
        }


def no_report(backend: str, *, reason: str) -> Json:
    """Return the report of an emulator that is gone: nothing is known, and it did not keep up."""
    names = ("packets", "lost_packets", "overflow_packets", "late_packets", "lateness", "lateness_recent")
    unknown = dict.fromkeys(names)
    return {
        "backend": backend,
        **unknown,
        "impairments": {},
        "reason": reason,
        "kept_up": False,
        "kept_up_rule": "the emulator runs",
    }


def setup_commands(backend: str, directions: list[Direction]) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return the commands, with their input, that impair directions for the first time."""
    if backend == "netem":
        lines = [line for direction in directions for line in netem.setup_lines(direction)]
        return ((("tc", "-batch", "-"), "\n".join(lines) + "\n"),)
    lines = [line for direction in directions for line in shaper.setup_lines(direction)]
    queued = [direction for direction in directions if nfqueue.needs_queue(direction.impairment)]
    return (
        (("tc", "-batch", "-"), "\n".join(lines) + "\n"),
        (iptables_restore(), rules_text(queued)),
    )


def iptables_restore() -> tuple[str, ...]:
    """Return the command that adds iptables rules from its input; legacy, which needs no nftables."""
    return ("iptables-legacy-restore", "--noflush", "--wait", "5")


def rules_text(directions: list[Direction]) -> str:
    """Return the input for `iptables_restore` that queues these directions' packets."""
    return "\n".join(["*filter", *(nfqueue.rule(direction) for direction in directions), "COMMIT", ""])


def cpu_pressure() -> tuple[float, str]:
    """Return how short of CPU the machine is (0: not at all), and where that comes from.

    Share of the last 10 s in which some task waited for a CPU (kernel pressure stall information), else the
    1 minute load per CPU beyond 1.
    """
    try:
        first = Path("/proc/pressure/cpu").read_text(encoding="ascii").split("\n", 1)[0]
        words = dict(word.split("=") for word in first.split()[1:])
        return float(words["avg10"]) / 100, "/proc/pressure/cpu some avg10"
    except (OSError, KeyError, ValueError):
        return max(os.getloadavg()[0] / (os.cpu_count() or 1) - 1, 0.0), "load average per CPU - 1"


def _be_punctual() -> str:
    """Ask for real-time scheduling and precise timers; return what was granted."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
        return "real-time (round robin)"
    except OSError as error:
        log.warning("no real-time scheduling: %s", error)
    try:
        os.nice(-20)
        return "nice -20"
    except OSError as error:
        log.warning("no higher priority: %s", error)
        return "normal"


def main() -> None:
    """Run from the command line until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    emulator = Emulator(Plan.from_json(arguments.plan.read_text(encoding="utf-8")), arguments.socket)
    signal.signal(signal.SIGTERM, emulator.stop)
    signal.signal(signal.SIGINT, emulator.stop)
    emulator.scheduling = _be_punctual()
    log.info("%s back end, scheduling %s", emulator._backend, emulator.scheduling)
    emulator.run()


if __name__ == "__main__":
    main()
