"""Start a worker on every host of a testbed, and know which of them have ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scenarios.schema import EMBEDDED, Scenario
from topologies import rpc
from topologies.component import Component, http_json
from topologies.errors import TestbedError, TopologyError
from topologies.processes import tail
from topologies.specs import NetworkSpec
from topologies.stages import api_url
from topologies.state import Journal

_POLL_S = 0.1
_ZYGOTE_TIMEOUT_S = 90.0
_ENROLMENT_TIMEOUT_S = 60.0
_ENROLMENT_TIMEOUT_PER_NODE_S = 2.0


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
        if scenario.model != EMBEDDED:
            command += ["--model", scenario.model]
        self.zygote = Component("zygote", command, journal)
        self.workers: dict[str, Worker] = {}
        self.dead: dict[str, int] = {}

    def start(self, netns: Callable[[str], str], progress: Callable[[str], None]) -> None:
        """Start a worker on every host, and wait until the orchestrator has them all.

        Raises:
            TestbedError: a worker ended or did not enrol in time; the text names it and ends with its log.
        """
        self.zygote.wait_until(
            self._answers, timeout_s=_ZYGOTE_TIMEOUT_S, what=f"an answer at {self._socket}"
        )
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
                    "training_memory_bytes": self._scenario.devices.training_memory_bytes,
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
        timeout_s = _ENROLMENT_TIMEOUT_S + _ENROLMENT_TIMEOUT_PER_NODE_S * len(self.workers)
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
