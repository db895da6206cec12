"""Answer for a testbed that is up: what it is, and what may be changed while it runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scenarios.schema import Scenario
from topologies import stages
from topologies.errors import TestbedError
from topologies.network import Network
from topologies.processes import identify
from topologies.rpc import Json, Reply
from topologies.specs import LinkSpec
from topologies.state import Journal
from topologies.status import Status
from topologies.worker_stage import Workers

_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


class Answers:
    """Answers to what is asked of a testbed (topologies/rpc.py); `trouble` grows as its parts suffer."""

    def __init__(
        self,
        scenario: Scenario,
        scenario_path: str | None,
        wanted: tuple[str, ...],
        *,
        network: Network,
        workers: Workers | None,
        journal: Journal,
        trouble: Mapping[str, str],
    ) -> None:
        self._scenario, self._scenario_path, self._wanted = scenario, scenario_path, wanted
        self._network, self._workers, self._journal, self._trouble = network, workers, journal, trouble
        self._started_at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._spec = network.spec
        self._links: dict[str, dict[str, Json]] = {
            link.name: {"a_to_b": asdict(link.a_to_b), "b_to_a": asdict(link.b_to_a)}
            for link in self._spec.links
        }

    def handle(self, request: Json, reply: Reply) -> None:
        """Answer one request.

        Raises:
            TopologyError: it cannot be done.
        """
        call = request.get("call")
        if call == "status":
            reply(self.status().to_json())
        elif call == "emulation":
            reply(self._network.wiring.report())
        elif call == "change":
            reply(self._change(str(request["link"]), request.get("direction"), request["values"]))
        elif call == "restore":
            reply(self._restore(str(request["link"])))
        elif call == "kill":
            reply(self._kill(str(request["node"])))
        else:
            raise TestbedError(f"unknown call {call!r}; known: status, emulation, change, restore, kill")

    def _change(self, name: str, direction: str | None, values: dict[str, Any]) -> Json:
        link = self._spec.link(name)
        for side in _sides(link, direction):
            source, destination = (link.a, link.b) if side == "a_to_b" else (link.b, link.a)
            after = self._network.wiring.change(f"{source}-{destination}", values)
            self._links[link.name][side] = asdict(after)
        return {"link": link.name, "current": self._links[link.name]}

    def _restore(self, name: str) -> Json:
        link = self._spec.link(name)
        self._change(name, "a_to_b", asdict(link.a_to_b))
        return self._change(name, "b_to_a", asdict(link.b_to_a))

    def _kill(self, node: str) -> Json:
        if self._workers is None or node not in self._workers.workers:
            raise TestbedError(f"there is no worker on {node!r} to kill")
        pid = self._workers.workers[node].pid
        if node in self._workers.dead or identify(node, pid) is None:
            raise TestbedError(f"the worker on {node} has ended already")
        os.kill(pid, signal.SIGKILL)
        return {"killed": pid}

    def status(self) -> Status:
        """Describe the testbed as it is now."""
        scenario = self._scenario
        urls = {}
        if "controller" in self._wanted:
            urls["northbound"] = stages.northbound_url(scenario)
        if "orchestrator" in self._wanted:
            urls["api"] = stages.api_url(scenario)
        return Status(
            prefix=self._spec.prefix,
            scenario=scenario.name,
            scenario_path=self._scenario_path,
            started_at=self._started_at,
            stages=self._wanted,
            state_dir=str(self._journal.directory),
            pids={"supervisor": os.getpid(), **self._journal.pids()},
            urls=urls,
            hosts=tuple(self._host_json(host.name) for host in self._spec.all_hosts()),
            switches=tuple(
                {"name": item.name, "dpid": item.dpid, "role": str(item.role)} for item in self._spec.switches
            ),
            links=tuple(self._link_json(link) for link in self._spec.links),
            emulator=self._network.wiring.backend,
            datapath=self._network.datapath,
            congestion_control=_CONGESTION_CONTROL.read_text(encoding="ascii").strip(),
            trouble=tuple(self._trouble.values()),
        )

    def _host_json(self, name: str) -> Json:
        host = next(item for item in self._spec.all_hosts() if item.name == name)
        worker = self._workers.workers.get(name) if self._workers else None
        return {
            "name": host.name,
            "ip": host.ip,
            "mac": host.mac,
            "switch": host.switch,
            "domain": host.domain,
            "trusted": host.trusted,
            "pid": self._network.nameToNode[name].pid,
            "netns": self._network.netns(name),
            "worker_pid": worker.pid if worker else None,
            **(asdict(host.device) if host.device else {}),
        }

    def _link_json(self, link: LinkSpec) -> Json:
        forth, back = stages.northbound_ids(self._spec, link)
        return {
            "name": link.name,
            "kind": str(link.kind),
            "a": link.a,
            "b": link.b,
            "northbound": {"a_to_b": forth, "b_to_a": back},
            "configured": {"a_to_b": asdict(link.a_to_b), "b_to_a": asdict(link.b_to_a)},
            "current": self._links[link.name],
        }


def _sides(link: LinkSpec, direction: str | None) -> tuple[str, ...]:
    """Read a direction: None is both, `h3>g1` (or `h3-g1`) the one from h3 to g1."""
    names = {
        "a_to_b": "a_to_b",
        "b_to_a": "b_to_a",
        f"{link.a}>{link.b}": "a_to_b",
        f"{link.b}>{link.a}": "b_to_a",
        f"{link.a}-{link.b}": "a_to_b",
        f"{link.b}-{link.a}": "b_to_a",
    }
    if direction is None:
        return ("a_to_b", "b_to_a")
    if direction not in names:
        raise TestbedError(
            f"link {link.name} has no direction {direction!r}; it has {link.a}>{link.b} and {link.b}>{link.a}"
        )
    return (names[direction],)
