"""One running testbed as the benchmark sees it: hosts, configured truth, and the controller."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.network_accuracy import plan
from benchmarks.network_accuracy.northbound import Northbound
from benchmarks.network_accuracy.rival import Rival
from scenarios.schema import Scenario
from topologies import controller_token, testbed
from topologies.links.lateness import WINDOW_S
from topologies.specs import NetworkSpec, network_spec
from topologies.stages import northbound_ids
from topologies.status import Status
from workers.namespaces import make_inside

Progress = Callable[[str], None]
ASYMMETRY_S = 0.01
_KNOWN_WITHIN_S = 30.0


class World:
    """A testbed with controller and network, every link's truth at hand."""

    def __init__(
        self, part: plan.Part, scenario: Scenario, status: Status, rival: Rival | None = None
    ) -> None:
        self.part = part
        self.rival = rival
        self.name = scenario.name
        self.seed = scenario.seed
        self.status = status
        self.spec: NetworkSpec = network_spec(scenario)
        self.url = status.urls["northbound"]
        self._headers = controller_token.headers(scenario.network.prefix)
        self.northbound = self.client()
        self.testbed = testbed.Client(scenario.network.prefix)
        self.hosts: dict[str, dict[str, Any]] = {host["name"]: host for host in status.hosts}
        self.edge = plan.measured_hosts(part)
        self.controller_pid = status.pids["controller"]
        self.configured: set[str] = set()
        """Hosts whose access capacity the operator has told the controller."""

    def client(self) -> Northbound:
        """Return another client of the controller, for another thread."""
        return Northbound(self.url, self._headers)

    def ip(self, host: str) -> str:
        """Return the address of a host."""
        return str(self.hosts[host]["ip"])

    def access(self, host: str) -> str:
        """Return the name of a host's access link."""
        return f"{host}-{self.hosts[host]['switch']}"

    def access_ids(self, host: str) -> tuple[str, str]:
        """Return the controller's ids of a host's access link: from the host, to the host."""
        return northbound_ids(self.spec, self.spec.link(self.access(host)))

    def rate_bps(self, host: str) -> float:
        """Return the true capacity between `orch` and a host."""
        return self.spec.end_to_end(host).rate_bps

    def announce_hosts(self) -> None:
        """Have every host announce itself by ARP (RFC 5227, section 2.3), and wait until all are known.

        Raises:
            RuntimeError: some are not known within 30 s.
        """
        deadline = time.monotonic() + _KNOWN_WITHIN_S
        missing = set(self.hosts)
        while missing:
            for name in missing:
                announce(self.hosts[name], name)
            time.sleep(0.5)
            known = {host["ip"] for host in self.northbound.get("/topology")["hosts"]}
            missing = {name for name in missing if self.ip(name) not in known}
            if missing and time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: not known within 30 s: {', '.join(sorted(missing))}")

    def configure_capacities(self) -> None:
        """Tell the controller, as an operator would, the capacity of every second host's access link."""
        for host in self.edge[::2]:
            for link_id in self.access_ids(host):
                body = {"capacity_bps": self.spec.link(self.access(host)).a_to_b.rate_bps}
                if self.northbound.put(f"/links/{link_id}", body) == 200:
                    self.configured.add(host)

    def set_loss(self, ratio: float) -> None:
        """Give every measured host's access link this loss, each way, and no other link any."""
        for host in self.edge:
            self.testbed.degrade(self.access(host), loss_ratio=ratio)

    def make_asymmetric(self) -> None:
        """Delay one direction of a link between switches, off the shortest paths, by ASYMMETRY_S more."""
        link = self.spec.link("g1-c2")
        self.testbed.degrade(link.name, "g1>c2", delay_s=link.a_to_b.delay_s + ASYMMETRY_S)
        self.status = self.testbed.status()


def announce(host: dict[str, Any], name: str) -> None:
    """Send one ARP announcement from a host."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sock.bind((f"{name}-eth0", 0))
        return sock

    mac, ip = bytes.fromhex(host["mac"].replace(":", "")), socket.inet_aton(host["ip"])
    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, ip, bytes(6), ip)
    with make_inside(host["netns"], make) as sock:
        sock.send(b"\xff" * 6 + mac + b"\x08\x06" + arp)


@contextmanager
def running(part: plan.Part, scenario: Scenario, progress: Progress) -> Iterator[World]:
    """Start the testbed of a network, and take it down in the end."""
    testbed.down(scenario.network.prefix)
    rival = None
    try:
        status = testbed.up(scenario, stages=("controller", "network"), tied=True, progress=progress)
        if part.classic:
            progress("Starting the classic method beside it")
            rival = _rival(scenario, status)
        yield World(part, scenario, status, rival)
    finally:
        if rival is not None:
            rival.close()
        testbed.down(scenario.network.prefix)


def _rival(scenario: Scenario, status: Status) -> Rival:
    network = scenario.network
    return Rival(
        [f"{network.prefix}-{switch['name']}" for switch in status.switches],
        openflow_port=network.openflow_port,
        rival_port=network.openflow_port + 1,
        rest_port=network.northbound_port + 1,
    )


LATE_LIMIT_RATIO = 0.01
"""Share of the packets of a phase that may be more than the emulator's limit (5 ms) late."""


class Emulation:
    """Note how late the emulated links deliver over a phase, and whether that is good enough.

    A phase is valid when the kernel's packet queue lost nothing for lack of room and at most 1 % of the
    packets were more than 5 ms late. netem does not tell; there the machine must not be short of CPU.
    """

    def __init__(self, world: World) -> None:
        self._client = world.testbed
        self._first = self._client.emulation()
        self._began = time.monotonic()
        self._late_s: list[float] = []

    def look(self) -> None:
        """Read the emulator's recent lateness, once that covers nothing but the phase (10 s)."""
        if time.monotonic() - self._began >= WINDOW_S:
            late_s = self._client.emulation().get("recent_lateness_p99_s")
            if late_s is not None:
                self._late_s.append(late_s)

    def row(self) -> dict[str, Any]:
        """Return what was seen since this was made."""
        last = self._client.emulation()
        since = {
            name: (last.get(name) or 0) - (self._first.get(name) or 0)
            for name in ("packets", "overflow_packets", "late_packets")
        }
        reason = None
        if since["overflow_packets"]:
            reason = f"the emulator lost {since['overflow_packets']} packets for lack of room"
        elif since["late_packets"] > LATE_LIMIT_RATIO * since["packets"]:
            reason = f"{since['late_packets']} of {since['packets']} packets were more than 5 ms late"
        elif last["backend"] == "netem" and not last["kept_up"]:
            reason = "the machine was short of CPU"
        return {
            "kind": "emulation",
            "backend": last["backend"],
            **since,
            "recent_lateness_p99_s": self._late_s,
            "cpu_pressure_ratio": last.get("cpu_pressure_ratio"),
            "valid": reason is None,
            "reason": reason,
        }
