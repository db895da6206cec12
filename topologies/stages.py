"""Start the processes of a testbed one by one, each awaited until it answers."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from scenarios.schema import Scenario
from topologies import controller_token, rpc
from topologies.errors import TestbedError, TopologyError
from topologies.processes import die_with_parent, stop_process, tail
from topologies.specs import LinkKind, LinkSpec, NetworkSpec
from topologies.state import Journal, make_directory

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parent.parent
_HTTP_TIMEOUT_S = 5.0
_POLL_S = 0.1
CONTROLLER_TIMEOUT_S = 40.0
SWITCHES_TIMEOUT_S = 30.0
LINKS_TIMEOUT_S = 40.0
ORCHESTRATOR_TIMEOUT_S = 60.0
ZYGOTE_TIMEOUT_S = 90.0
ENROLMENT_TIMEOUT_S = 60.0
ENROLMENT_TIMEOUT_PER_NODE_S = 2.0


class Component:
    """A child process with a log of its own."""

    def __init__(self, name: str, command: Sequence[str], journal: Journal, *, again: bool = False) -> None:
        """Start it; `again`: its log goes on."""
        self.name = name
        self.log_path = journal.directory / "logs" / f"{name}.log"
        with self.log_path.open("ab" if again else "wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        journal.add_process(name, self.process.pid)

    def wait_until(self, condition: Callable[[], object], *, timeout_s: float, what: str) -> None:
        """Wait until `condition` holds.

        Raises:
            TestbedError: the process ends first, or time is up; the text has the end of its log.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            status = self.process.poll()
            if status is not None:
                raise TestbedError(f"{self.name} ended with status {status}; {self.log_end()}")
            if time.monotonic() > deadline_s:
                raise TestbedError(
                    f"{self.name}: waited {timeout_s:g} s in vain for {what}; {self.log_end()}"
                )
            time.sleep(_POLL_S)

    def log_end(self) -> str:
        """Return where the log is and how it ends."""
        return f"{self.log_path} ends:\n{tail(self.log_path)}"

    @property
    def ended(self) -> int | None:
        """Return its exit status, None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """End it."""
        stop_process(self.process)


def http_json(
    method: str, url: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Send a request; return status and JSON (None if it is none); status 0 when nobody answers."""
    try:
        answer = requests.request(method, url, json=body, headers=headers, timeout=_HTTP_TIMEOUT_S)
    except requests.RequestException as error:
        log.debug("%s %s: %s", method, url, error)
        return 0, None
    try:
        return answer.status_code, answer.json()
    except ValueError:
        return answer.status_code, None


# --- controller


def northbound_url(scenario: Scenario) -> str:
    """Return where the controller serves REST, without the base path."""
    return f"http://127.0.0.1:{scenario.network.northbound_port}"


def start_controller(scenario: Scenario, journal: Journal) -> Component:
    """Start the controller and wait until its REST answers."""
    network = scenario.network
    command = [
        sys.executable, "-m", "ryu_apps.launcher",
        "--ofp-listen-host", "127.0.0.1", "--ofp-tcp-listen-port", str(network.openflow_port),
        "--wsapi-host", "127.0.0.1", "--wsapi-port", str(network.northbound_port),
        "--northbound-token-file", str(controller_token.make(network.prefix)),
        "--pins", str(journal.directory / "pins.json"),
        str(REPOSITORY / "ryu_apps" / "manager.py"),
    ]  # fmt: skip
    controller = Component("controller", command, journal)
    url = f"{northbound_url(scenario)}/healthz"
    controller.wait_until(
        lambda: http_json("GET", url)[0] == 200, timeout_s=CONTROLLER_TIMEOUT_S, what=f"{url} to answer"
    )
    return controller


def wait_for_switches(controller: Component, scenario: Scenario, spec: NetworkSpec) -> None:
    """Wait until every switch is connected to the controller."""
    url = f"{northbound_url(scenario)}/healthz"
    wanted = len(spec.switches)

    def connected() -> bool:
        status, answer = http_json("GET", url)
        return status == 200 and answer["switches"] >= wanted

    controller.wait_until(connected, timeout_s=SWITCHES_TIMEOUT_S, what=f"{wanted} switches to connect")


class Capacities:
    """Tell the controller the capacity of the core links, as their operator would, once it has found them.

    Access links are left to the controller to estimate.
    """

    def __init__(self, scenario: Scenario, spec: NetworkSpec) -> None:
        self._url = f"{northbound_url(scenario)}/northbound/v1/links"
        self._prefix = scenario.network.prefix
        self.missing = {
            name: rate_bps
            for link in spec.links
            if link.kind is LinkKind.CORE
            for name, rate_bps in zip(northbound_ids(spec, link), _rates(link), strict=True)
        }

    def put(self) -> set[str]:
        """Configure what can be configured by now; return the ids of links that are not known yet."""
        status, answer = http_json("GET", self._url)
        known = {item["id"] for item in answer["links"]} if status == 200 else set()
        wanted = known & set(self.missing)
        headers = controller_token.headers(self._prefix) if wanted else {}
        for name in wanted:
            body = {"capacity_bps": self.missing[name]}
            if http_json("PUT", f"{self._url}/{name}", body, headers)[0] == 200:
                del self.missing[name]
        return set(self.missing)

    def put_between_switches(self) -> bool:
        """Configure what can be configured; tell whether all between switches are."""
        return not any(_is_between_switches(name) for name in self.put())


def _rates(link: LinkSpec) -> tuple[float, float]:
    return link.a_to_b.rate_bps, link.b_to_a.rate_bps


def _is_between_switches(name: str) -> bool:
    return all(end.count(".") == 1 for end in name.split("-"))


def northbound_ids(spec: NetworkSpec, link: LinkSpec) -> tuple[str, str]:
    """Return the controller's ids of both directions of a link (docs/northbound_api.md)."""
    addresses = {host.name: host.ip for host in spec.all_hosts()}

    def end(node: str, port: int) -> str:
        return addresses[node] if node in addresses else f"{spec.switch(node).dpid}.{port}"

    a, b = end(link.a, link.a_port), end(link.b, link.b_port)
    return f"{a}-{b}", f"{b}-{a}"


# --- orchestrator


def api_url(scenario: Scenario) -> str:
    """Return where the orchestrator serves REST."""
    return f"http://127.0.0.1:{scenario.network.api_port}"


def start_orchestrator(scenario: Scenario, spec: NetworkSpec, netns: str, journal: Journal) -> Component:
    """Start the orchestrator, with its data-plane sockets in `netns`, and wait until it is ready.

    A job that an earlier testbed of this name left is ended: its nodes went with that testbed.
    """
    state_dir = journal.directory / "orchestrator"
    make_directory(state_dir)
    config = {
        "api_host": "127.0.0.1",
        "api_port": scenario.network.api_port,
        "northbound_url": northbound_url(scenario),
        "northbound_token_file": str(controller_token.path(scenario.network.prefix)),
        "data_address": spec.orch.ip,
        "data_port": scenario.network.data_port,
        "data_netns": netns,
        "state_dir": str(state_dir),
        "seed": scenario.seed,
        "emulated": True,
    }
    _orchestrator_config(journal).write_text(json.dumps(config), encoding="utf-8")
    orchestrator = Component("orchestrator", [*_orchestrator_command(journal), "--abandon-jobs"], journal)
    url = f"{api_url(scenario)}/readyz"
    orchestrator.wait_until(
        lambda: http_json("GET", url)[0] == 200,
        timeout_s=ORCHESTRATOR_TIMEOUT_S,
        what=f"{url} to say that it is ready",
    )
    return orchestrator


def restart_orchestrator(journal: Journal) -> Component:
    """Start the orchestrator again, without waiting for it; it goes on with the job that it had."""
    return Component("orchestrator", _orchestrator_command(journal), journal, again=True)


def _orchestrator_command(journal: Journal) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", "serve", "--config", str(_orchestrator_config(journal))]


def _orchestrator_config(journal: Journal) -> Path:
    return journal.directory / "orchestrator.json"


# --- workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker that was started."""

    node: str
    pid: int
    log_path: Path


class Workers:
    """The zygote, and the workers that it forks into the hosts' namespaces."""

    def __init__(self, scenario: Scenario, spec: NetworkSpec, journal: Journal) -> None:
        self._scenario, self._spec, self._journal = scenario, spec, journal
        self._socket = journal.directory / "zygote.sock"
        command = [sys.executable, "-m", "workers.zygote", "--socket", str(self._socket)]
        self.zygote = Component("zygote", command, journal)
        self.workers: dict[str, Worker] = {}
        self.dead: dict[str, int] = {}

    def start(self, netns: Callable[[str], str], progress: Callable[[str], None]) -> None:
        """Start a worker on every host, and wait until the orchestrator has them all.

        Raises:
            TestbedError: a worker ended or did not enrol in time; the text names it and ends with its log.
        """
        self.zygote.wait_until(self._answers, timeout_s=ZYGOTE_TIMEOUT_S, what=f"an answer at {self._socket}")
        for host in self._spec.hosts:
            self._spawn(host.name, netns(host.name))
        self._journal.add_processes({f"worker {name}": item.pid for name, item in self.workers.items()})
        self._wait_for_enrolment(progress)

    def _answers(self) -> bool:
        try:
            self.reap()
        except TopologyError:
            return False
        return True

    def _spawn(self, name: str, netns: str) -> None:
        host = next(item for item in self._spec.hosts if item.name == name)
        assert host.device is not None
        log_path = self._journal.directory / "logs" / f"worker-{name}.log"
        state_dir = self._journal.directory / "workers" / name
        state_dir.mkdir(parents=True, mode=0o700)
        log_path.unlink(missing_ok=True)  # an earlier run's lines would explain the wrong failure
        data_port = self._scenario.network.data_port
        answer = rpc.call(
            self._socket,
            {
                "call": "spawn",
                "node": name,
                "netns": netns,
                "log": str(log_path),
                "nice": host.device.nice,
                "worker": {
                    "node": name,
                    "orchestrator": f"{self._spec.orch.ip}:{data_port}",
                    "token": self._token(name, trusted=host.trusted),
                    "listen": f"{host.ip}:{data_port + 1}",
                    "state_dir": str(state_dir),
                    "power": host.device.power,
                    "compute_flops": host.device.compute_flops,
                    "layer_overhead_s": host.device.layer_overhead_s,
                    "memory_bytes": host.device.memory_bytes,
                    "pacing": self._scenario.devices.pacing,
                    "emulated": True,
                },
            },
            timeout_s=30.0,
        )
        self.workers[name] = Worker(node=name, pid=int(answer["pid"]), log_path=log_path)

    def _token(self, node: str, *, trusted: bool) -> str:
        url = f"{api_url(self._scenario)}/api/v1/enrolment-tokens"
        status, answer = http_json("POST", url, {"node": node, "trusted": trusted})
        if status not in (200, 201):
            raise TestbedError(f"the orchestrator gives no token for {node}: status {status}: {answer}")
        return str(answer["token"])

    def _wait_for_enrolment(self, progress: Callable[[str], None]) -> None:
        timeout_s = ENROLMENT_TIMEOUT_S + ENROLMENT_TIMEOUT_PER_NODE_S * len(self.workers)
        deadline_s = time.monotonic() + timeout_s
        told = 0
        while missing := set(self.workers) - self._alive():
            self._check_alive(missing)
            if time.monotonic() > deadline_s:
                raise TestbedError(
                    f"not enrolled within {timeout_s:g} s: {', '.join(sorted(missing))}; "
                    f"{self._log_end(min(missing))}"
                )
            ready = len(self.workers) - len(missing)
            if ready > told:
                told = ready
                progress(f"{ready} of {len(self.workers)} workers are enrolled")
            time.sleep(_POLL_S)

    def _alive(self) -> set[str]:
        """Return the nodes that the orchestrator has enrolled and hears from."""
        found: set[str] = set()
        offset = 0
        while True:
            url = f"{api_url(self._scenario)}/api/v1/nodes?limit=200&offset={offset}"
            status, answer = http_json("GET", url)
            items = answer["items"] if status == 200 else []
            found |= {item["node"] for item in items if item["alive"]}
            offset += len(items)
            if not items or offset >= answer["total"]:
                return found

    def _check_alive(self, missing: set[str]) -> None:
        self.reap()
        for node in sorted(missing & set(self.dead)):
            raise TestbedError(f"worker {node} ended with status {self.dead[node]}; {self._log_end(node)}")

    def _log_end(self, node: str) -> str:
        path = self.workers[node].log_path
        return f"{path} ends:\n{tail(path)}"

    def reap(self) -> None:
        """Ask the zygote which workers have ended."""
        answer = rpc.call(self._socket, {"call": "reap"}, timeout_s=5.0)
        by_pid = {worker.pid: worker.node for worker in self.workers.values()}
        for item in answer["exited"]:
            node = by_pid.get(item["pid"])
            if node is not None:
                self.dead[node] = item["status"]

    def stop(self) -> None:
        """End the zygote, and its workers with it."""
        self.zygote.stop()
