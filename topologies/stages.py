"""Start the guard, the controller and the orchestrator of a testbed; all but the first are awaited."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from scenarios.schema import Scenario
from topologies import controller_token
from topologies.component import REPOSITORY, Component, http_json
from topologies.specs import LinkKind, LinkSpec, NetworkSpec
from topologies.state import GUARD, Journal, make_directory

CONTROLLER_TIMEOUT_S = 40.0
SWITCHES_TIMEOUT_S = 30.0
LINKS_TIMEOUT_S = 40.0
ORCHESTRATOR_TIMEOUT_S = 60.0


# --- guard


def start_guard(journal: Journal, *, again: bool = False) -> Component:
    """Start the process that removes what is left should this one be killed (topologies/guard.py)."""
    itself = os.pidfd_open(os.getpid())
    try:
        command = [sys.executable, "-m", "topologies.guard", journal.prefix, str(itself)]
        return Component(GUARD, command, journal, again=again, outlives=True, pass_fds=(itself,))
    finally:
        os.close(itself)


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

    Jobs and deployments that an earlier testbed of this name left are ended: their nodes went with it.
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
    orchestrator = Component("orchestrator", [*_orchestrator_command(journal), "--abandon"], journal)
    url = f"{api_url(scenario)}/readyz"
    orchestrator.wait_until(
        lambda: http_json("GET", url)[0] == 200,
        timeout_s=ORCHESTRATOR_TIMEOUT_S,
        what=f"{url} to say that it is ready",
    )
    return orchestrator


def restart_orchestrator(journal: Journal) -> Component:
    """Start the orchestrator again, without waiting for it; it goes on with what it had."""
    return Component("orchestrator", _orchestrator_command(journal), journal, again=True)


def _orchestrator_command(journal: Journal) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", "serve", "--config", str(_orchestrator_config(journal))]


def _orchestrator_config(journal: Journal) -> Path:
    return journal.directory / "orchestrator.json"
