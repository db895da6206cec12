"""Start, ask, degrade and stop a whole testbed: controller, emulated network, orchestrator, workers.

Everything belongs to a prefix (the scenario's `network.prefix`); several testbeds can be up at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scenarios.schema import Scenario
from topologies import checks, leftovers, rpc, state
from topologies.errors import TestbedError, TopologyError
from topologies.processes import stop_all, tail
from topologies.status import STAGES, Status

__all__ = ["STAGES", "AlreadyUp", "Client", "Status", "TestbedError", "down", "status", "up"]

_REPOSITORY = Path(__file__).resolve().parent.parent
_STOP_TIMEOUT_S = 45.0
Progress = Callable[[str], None]


class AlreadyUp(TestbedError):
    """The testbed is up already; `status` is what it is."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"testbed {status.prefix} is up already, since {status.started_at}")
        self.status = status


def up(
    scenario: Scenario,
    *,
    scenario_path: str | None = None,
    stages: tuple[str, ...] = STAGES,
    tied: bool = False,
    progress: Progress,
) -> Status:
    """Start the testbed of `scenario` and return when all of it is ready.

    It outlives this process, unless it is `tied`: then it is taken down when this process ends, however that
    happens. `stages` may leave parts out. What an earlier run left, under whatever prefix, is removed first.
    On failure, and when interrupted, everything is taken down again.

    Raises:
        AlreadyUp: it is up.
        TestbedError: it cannot be started; the text says why, with the end of the log that tells more.
    """
    _check_stages(stages)
    if tied and threading.current_thread() is not threading.main_thread():
        raise TestbedError("a testbed is tied to the thread that starts it; start it in the main thread")
    checks.check_root()
    prefix = scenario.network.prefix
    have = status(prefix)
    if have is not None:
        raise AlreadyUp(have)
    log_path = state.directory(prefix) / "logs" / "testbed.log"
    state.make_directory(log_path.parent)
    request = {
        "scenario": scenario.model_dump(mode="json"),
        "scenario_path": scenario_path,
        "stages": list(stages),
        "tied_to": os.getpid() if tied else None,
    }
    with log_path.open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "topologies.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=_REPOSITORY,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            text=True,
        )
    try:
        _follow(supervisor, json.dumps(request), progress, log_path)
    except BaseException:
        _abandon(supervisor, prefix)
        raise
    return Client(prefix).status()


def _check_stages(stages: tuple[str, ...]) -> None:
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise TestbedError(f"unknown stages {', '.join(unknown)}; known: {', '.join(STAGES)}")
    if "network" not in stages:
        raise TestbedError("the stages must contain network")
    if "workers" in stages and "orchestrator" not in stages:
        raise TestbedError("the stage workers needs the stage orchestrator")


def _follow(supervisor: subprocess.Popen[str], request: str, progress: Progress, log_path: Path) -> None:
    """Hand over the request and follow the progress until ready."""
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    with suppress(BrokenPipeError), supervisor.stdin as stdin:
        stdin.write(request)
    with supervisor.stdout as lines:
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if "progress" in message:
                progress(message["progress"])
            elif "ready" in message:
                return
            elif "failed" in message:
                raise TestbedError(message["failed"])
    raise TestbedError(f"the supervisor ended without a word; {log_path} ends:\n{tail(log_path)}")


def _abandon(supervisor: subprocess.Popen[str], prefix: str) -> None:
    """Have a supervisor that failed or is unwanted take everything down."""
    with suppress(ProcessLookupError):
        os.kill(supervisor.pid, signal.SIGTERM)
    try:
        supervisor.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()
        leftovers.sweep_orphan(prefix, wait_s=leftovers.PATIENCE_S)


def down(prefix: str, progress: Progress = lambda _text: None) -> list[str]:
    """Stop and remove everything of the testbed `prefix`, whatever state it is in; return what that was.

    Raises:
        TestbedError: something cannot be removed.
    """
    checks.check_root()
    there = state.inventory(prefix)
    record = state.read(prefix)
    if record is not None and record.owner.alive():
        progress(f"Stopping testbed {prefix}")
        stop_all([record.owner], timeout_s=_STOP_TIMEOUT_S)
    try:
        with leftovers.lock(prefix, wait_s=leftovers.PATIENCE_S):
            if state.inventory(prefix):
                progress(f"Removing what is left of testbed {prefix}")
            state.sweep(prefix)
    except TopologyError as error:
        raise TestbedError(str(error)) from error
    left = state.inventory(prefix)
    if left:
        raise TestbedError(f"testbed {prefix}: these are still there: {', '.join(left)}")
    return there


def status(prefix: str) -> Status | None:
    """Return what the testbed `prefix` is; None if it is not up.

    Raises:
        TestbedError: it is just being started, or does not answer.
    """
    record = state.read(prefix)
    if record is None or not record.owner.alive():
        return None
    if not record.status:
        raise TestbedError(f"testbed {prefix} is just being started by process {record.owner.pid}")
    try:
        return Client(prefix).status()
    except TestbedError:
        if record.owner.alive():
            raise
        return None  # it ended while being asked


class Client:
    """Ask and drive a testbed that is up. Every call raises TestbedError when it cannot be done."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._socket = state.directory(prefix) / "testbed.sock"

    def _call(self, call: str, **values: Any) -> dict[str, Any]:
        if not self._socket.exists():
            raise TestbedError(f"testbed {self._prefix} is not up")
        try:
            return rpc.call(self._socket, {"call": call, **values}, timeout_s=15.0)
        except TopologyError as error:
            raise TestbedError(f"testbed {self._prefix}: {error}") from error

    def status(self) -> Status:
        """Describe the testbed as it is now."""
        return Status.from_json(self._call("status"))

    def degrade(
        self,
        link: str,
        direction: str | None = None,
        *,
        delay_s: float | None = None,
        rate_bps: float | None = None,
        loss_ratio: float | None = None,
        jitter_s: float | None = None,
    ) -> dict[str, Any]:
        """Change what `link` (`h3-g1`) does to packets, in both directions or one (`h3>g1`); None: as it is.

        Returns the link's values as they are now, per direction.
        """
        values = {"delay_s": delay_s, "rate_bps": rate_bps, "loss_ratio": loss_ratio, "jitter_s": jitter_s}
        given = {name: value for name, value in values.items() if value is not None}
        return dict(self._call("change", link=link, direction=direction, values=given)["current"])

    def restore(self, link: str) -> dict[str, Any]:
        """Give `link` its configured values again."""
        return dict(self._call("restore", link=link)["current"])

    def emulation(self) -> dict[str, Any]:
        """Tell how well the link emulation keeps up: flat, `kept_up` by the rule in `kept_up_rule`.

        `lateness_*` is delivery minus due time since the start, `recent_lateness_*` over the last 10 s; None
        where nothing was delivered or, with `reason`, where it cannot be known.
        """
        return _flat(self._call("emulation"))

    def kill(self, node: str) -> int:
        """Kill the worker on `node`, as a crash would, and return its pid."""
        return int(self._call("kill", node=node)["killed"])


def _flat(report: dict[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in report.items() if not isinstance(value, dict)}
    for prefix, key in (("lateness", "lateness"), ("recent_lateness", "lateness_recent")):
        values = report[key] or {}
        for name in ("p50", "p99", "max"):
            value_ms = values.get(f"{name}_ms")
            flat[f"{prefix}_{name}_s"] = None if value_ms is None else value_ms / 1e3
    flat.pop("lateness", None)
    flat.pop("lateness_recent", None)
    return flat
