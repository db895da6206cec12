"""Look after one testbed: start its parts, answer for it, take it down. `testbed.up` starts this.

`python -m topologies.supervisor` reads one JSON object from standard input (`scenario`, `scenario_path`,
`stages`, `tied_to`), writes progress to standard output, one JSON object per line (`progress`, at last
`ready` or `failed`), and then serves requests (topologies/rpc.py) at `testbed.sock` until SIGTERM. The kernel
sends that, too, when the process `tied_to` dies: the one that started this, or null.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import IO

from scenarios.schema import Scenario, parse
from topologies import checks, leftovers, ovs, stages, state
from topologies.answers import Answers
from topologies.component import Component
from topologies.errors import TestbedError, TopologyError
from topologies.network import Network
from topologies.processes import end_with_parent
from topologies.rpc import Json, Server
from topologies.specs import NetworkSpec, network_spec
from topologies.tending import Tended
from topologies.wiring import Wiring, choose_backend
from topologies.worker_stage import Workers

log = logging.getLogger(__name__)

_TICK_S = 1.0
Progress = Callable[[str], None]


class Stopped(BaseException):
    """Somebody asked to stop while the testbed was starting."""


class Supervisor:
    """One testbed: what it is made of, and in which order that is taken apart again."""

    def __init__(
        self, scenario: Scenario, scenario_path: str | None, wanted: tuple[str, ...], progress: Progress
    ) -> None:
        self._scenario, self._scenario_path, self._wanted = scenario, scenario_path, wanted
        self._progress = progress
        self._undo = ExitStack()
        self._spec: NetworkSpec = network_spec(scenario)
        self._controller: Component | None = None
        self._tended: list[Tended] = []
        self._workers: Workers | None = None
        self._capacities: stages.Capacities | None = None
        self._trouble: dict[str, str] = {}
        self._stopping = False

    # --- starting and stopping

    def start(self) -> None:
        """Start all parts, in order.

        Raises:
            TopologyError: something cannot be had; `stop` takes down what was started.
        """
        checks.check_root()
        backend = choose_backend(self._scenario.links.emulator)
        checks.check_tools(backend)
        if ovs.ensure_running():  # before the sweeps: it comes back with the bridges that it had
            self._progress("Open vSwitch was not running; it does now")
        self._make_room()
        checks.check_ports(self._scenario, self._wanted)
        self._journal = state.Journal.create(self._scenario.network.prefix)
        self._undo.callback(state.sweep, self._scenario.network.prefix)
        self._tended.append(
            Tended(stages.start_guard(self._journal), lambda: stages.start_guard(self._journal, again=True))
        )
        if "controller" in self._wanted:
            self._progress("Starting the controller")
            self._controller = stages.start_controller(self._scenario, self._journal)
            self._undo.callback(self._controller.stop)
        self._start_network(backend)
        if "orchestrator" in self._wanted:
            self._progress("Starting the orchestrator")
            netns = self._network.netns("orch")
            orchestrator = Tended(
                stages.start_orchestrator(self._scenario, self._spec, netns, self._journal),
                lambda: stages.restart_orchestrator(self._journal),
            )
            self._tended.append(orchestrator)
            self._undo.callback(orchestrator.stop)
        if "workers" in self._wanted:
            self._start_workers()
        answers = self._answers()
        self._journal.set_status(answers.status().to_json())
        self._server = Server(self._journal.directory / "testbed.sock", answers.handle)
        self._undo.callback(self._server.close)

    def _answers(self) -> Answers:
        return Answers(
            self._scenario,
            self._scenario_path,
            self._wanted,
            network=self._network,
            workers=self._workers,
            journal=self._journal,
            trouble=self._trouble,
        )

    def _make_room(self) -> None:
        """Remove what earlier runs left, under this prefix and all others."""
        prefix = self._scenario.network.prefix
        try:
            swept = state.sweep(prefix)
        except (TopologyError, OSError) as error:
            log.exception("removing what an earlier run had left")
            raise TestbedError(
                f"what an earlier run had left cannot be removed: {_in_words(error)}"
            ) from error
        if swept:
            self._progress(f"Removed what an earlier run had left: {', '.join(swept)}")
        leftovers.sweep_orphans(prefix, self._progress)

    def _start_network(self, backend: str) -> None:
        scenario, spec = self._scenario, self._spec
        datapath = ovs.choose_datapath(scenario.network.datapath)
        counts = f"{len(spec.hosts) + 1} hosts, {len(spec.switches)} switches, {len(spec.links)} links"
        self._progress(f"Making the network: {counts}; {datapath} datapath, links by {backend}")
        wiring = Wiring(
            spec.prefix,
            backend=backend,
            seed=spec.seed,
            state_dir=self._journal.directory,
            record=self._journal.add_process,
        )
        self._network = Network(spec, wiring, datapath=datapath, openflow_port=scenario.network.openflow_port)
        self._undo.callback(self._network.stop)
        self._network.start_all(self._journal.add_processes)
        if self._controller is not None:
            self._introduce(self._controller)

    def _introduce(self, controller: Component) -> None:
        """Wait until the controller has found the core, and tell it the capacities there."""
        self._progress("Waiting for the controller to discover the core")
        stages.wait_for_switches(controller, self._scenario, self._spec)
        self._capacities = stages.Capacities(self._scenario, self._spec)
        controller.wait_until(
            self._capacities.put_between_switches,
            timeout_s=stages.LINKS_TIMEOUT_S,
            what="all links between switches",
        )

    def _start_workers(self) -> None:
        self._progress(f"Starting {len(self._spec.hosts)} workers")
        self._workers = Workers(self._scenario, self._spec, self._journal)
        self._undo.callback(self._workers.stop)
        self._workers.start(self._network.netns, self._progress)

    def stop(self) -> None:
        """Take down what was started, last first, and sweep up what a part that cannot be stopped leaves."""
        try:
            self._undo.close()
        except Exception:  # the outermost place: `testbed.down` looks for what is left, and names it
            log.exception("taking down")

    # --- running

    def serve(self) -> None:
        """Answer requests and watch the parts until told to stop."""
        server = self._server
        while not self._stopping:
            readable, writable, _ = select.select(server.readers(), server.writers(), [], _TICK_S)
            server.step(readable, writable)
            self._watch()

    def request_stop(self, *_: object) -> None:
        """End `serve` soon; usable as a signal handler."""
        self._stopping = True

    def _watch(self) -> None:
        """Note which parts have ended."""
        for part in (self._controller, self._workers and self._workers.zygote):
            if part is not None and part.process.poll() is not None:
                self._note(part.name, f"ended with status {part.process.returncode}; see {part.log_path}")
        emulator = self._network.wiring.emulator_status()
        if emulator is not None:
            log_path = self._network.wiring.log_path
            self._note("emulator", f"ended with status {emulator}: no packet passes any more; see {log_path}")
        self._tend_parts()
        self._tend_switches()
        if missing := self._network.missing():
            self._note(
                "switches",
                f"{', '.join(missing)} were removed by somebody else (mn -c does that): "
                "no packet passes there; take the testbed down and start it again",
            )
        if self._workers is not None and self._workers.zygote.process.poll() is None:
            self._reap(self._workers)
        if self._capacities is not None and self._capacities.missing:
            self._capacities.put()

    def _tend_parts(self) -> None:
        for tended in self._tended:
            happened = tended.tend(time.monotonic())
            if happened is not None:  # the newest says how often by now
                name = tended.part.name
                self._trouble[name] = f"{name} {happened}"
                log.error("%s", self._trouble[name])

    def _tend_switches(self) -> None:
        try:
            happened = self._network.tend(time.monotonic())
        except TopologyError as error:
            happened = f"has ended and cannot be started again: {error}"
        if happened is not None:
            self._note("Open vSwitch", happened)

    def _reap(self, workers: Workers) -> None:
        try:
            workers.reap()
        except TopologyError as error:
            log.warning("the zygote does not answer: %s", error)
        for node, status in workers.dead.items():
            worker = workers.workers[node]
            self._note(f"worker {node}", f"ended with status {status}; see {worker.log_path}")

    def _note(self, name: str, text: str) -> None:
        if name not in self._trouble:
            self._trouble[name] = f"{name} {text}"
            log.error("%s", self._trouble[name])


def _stop_now(*_: object) -> None:
    raise Stopped


def main() -> None:
    """Run from the command line; see the module's text."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    request = json.loads(sys.stdin.read())
    scenario = parse(request["scenario"], source=request["scenario_path"] or "(given by a program)")
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints from here on belongs in the log

    def say(kind: str, text: str) -> None:
        log.info("%s: %s", kind, text)
        try:
            print(json.dumps({kind: text}), file=progress, flush=True)
        except OSError:
            log.info("nobody listens to the progress any more")

    signal.signal(signal.SIGTERM, _stop_now)
    signal.signal(signal.SIGINT, _stop_now)
    if request["tied_to"] is not None and not end_with_parent(request["tied_to"]):
        raise SystemExit(f"process {request['tied_to']}, which wanted this testbed, is gone")
    raise SystemExit(_run(scenario, request, say, progress))


def _run(scenario: Scenario, request: Json, say: Callable[[str, str], None], progress: IO[str]) -> int:
    try:
        with leftovers.lock(scenario.network.prefix, wait_s=leftovers.PATIENCE_S):
            return _run_alone(scenario, request, say, progress)
    except (leftovers.Held, OSError) as error:
        say("failed", _in_words(error))
        return 1


def _run_alone(scenario: Scenario, request: Json, say: Callable[[str, str], None], progress: IO[str]) -> int:
    supervisor = Supervisor(
        scenario,
        request["scenario_path"],
        tuple(request["stages"]),
        lambda text: say("progress", text),
    )
    try:
        supervisor.start()
        signal.signal(signal.SIGTERM, supervisor.request_stop)
        signal.signal(signal.SIGINT, supervisor.request_stop)
        say("ready", scenario.name)
        progress.close()
        supervisor.serve()
    except Stopped:
        _take_down(supervisor)
        say("failed", "it was stopped while starting")
        return 1
    except Exception as error:  # the outermost loop: log, take down, tell
        log.exception("failed")
        _take_down(supervisor)
        say("failed", _in_words(error))
        return 1
    _take_down(supervisor)
    return 0


def _in_words(error: Exception) -> str:
    if isinstance(error, TopologyError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return repr(error)


def _take_down(supervisor: Supervisor) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    supervisor.stop()


if __name__ == "__main__":
    main()
