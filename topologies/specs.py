"""Describe an emulated network from a scenario: hosts, switches, links and what each link does to packets.

Pure: the same scenario gives the same network everywhere. Every host has random streams of its own, made
from the seed, the purpose of the stream and the host's number, so that neither the order nor the number of
the hosts changes what one host gets, and links can be redrawn without touching devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import log2

import numpy as np

from scenarios.schema import Devices, Links, Scenario
from topologies.errors import SpecError

ORCHESTRATOR = "orch"
ORCHESTRATOR_IP = "198.18.0.1"
PREFIX_LENGTH = 15
"""All data addresses are in 198.18.0.0/15, the range for network tests (RFC 2544)."""

_HOSTS_PER_SUBNET = 250
_LINK_STREAM, _DEVICE_STREAM = 1, 2

PEKEL_TABLE_I: dict[int, tuple[float, float, float]] = {
    1: (16e6, 0.058, 0.01),
    2: (7.5e6, 0.0785, 0.01),
    3: (21e6, 0.019, 0.01),
}
"""Means of bandwidth (bit/s), one-way delay (s) and loss ratio, end to end (Pekel 2025, Table I)."""


class SwitchRole(StrEnum):
    """What a switch is for."""

    CORE = "core"
    GATEWAY = "gateway"


class LinkKind(StrEnum):
    """`ACCESS` links end at an edge host and carry the drawn values; all others are `CORE`."""

    CORE = "core"
    ACCESS = "access"


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What one direction of a link does to packets.

    `rate_bps` counts Ethernet frames without preamble; `jitter_s` is the half-width of a uniform spread
    around `delay_s`; `queue_packets` bounds the queue in front of the rate.
    """

    rate_bps: float
    delay_s: float
    jitter_s: float = 0.0
    loss_ratio: float = 0.0
    queue_packets: int = 1000

    def __post_init__(self) -> None:
        if not self.rate_bps >= 8_000:
            raise SpecError(f"rate_bps is {self.rate_bps:g}; the slowest link that can be emulated has 8000")
        if not 0 <= self.delay_s <= 60:
            raise SpecError(f"delay_s is {self.delay_s:g}; it must be in 0..60 seconds")
        if not 0 <= self.jitter_s <= self.delay_s:
            raise SpecError(f"jitter_s is {self.jitter_s:g}; it must be in 0..delay_s ({self.delay_s:g})")
        if not 0 <= self.loss_ratio <= 1:
            raise SpecError(f"loss_ratio is {self.loss_ratio:g}; it must be in 0..1")
        if not 1 <= self.queue_packets <= 1_000_000:
            raise SpecError(f"queue_packets is {self.queue_packets}; it must be in 1..1000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The emulated device of a host: `power` has no unit (Pekel 2025), the rest follows from it.

    `nice` is for its process: where many devices share few CPUs, the faster one has to be done first, so it
    computes first; the slower one has the time to wait that its pacing would make it wait anyway.
    """

    power: float
    compute_flops: float
    layer_overhead_s: float
    memory_bytes: int
    nice: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """A host of the data network. The orchestrator's host has no device."""

    name: str
    ip: str
    mac: str
    switch: str
    domain: int | None
    trusted: bool
    device: Device | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchSpec:
    """A switch; `dpid` is 16 lower-case hex digits."""

    name: str
    dpid: str
    role: SwitchRole


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """A link between `a` and `b`; ports are OpenFlow port numbers, 0 at a host."""

    name: str
    kind: LinkKind
    a: str
    b: str
    a_port: int
    b_port: int
    a_to_b: Impairment
    b_to_a: Impairment

    def directions(self) -> tuple[tuple[str, Impairment], tuple[str, Impairment]]:
        """Return both directions, named `<source>-<destination>`, with what they do to packets."""
        return ((f"{self.a}-{self.b}", self.a_to_b), (f"{self.b}-{self.a}", self.b_to_a))


@dataclass(frozen=True, slots=True, kw_only=True)
class EndToEnd:
    """What the configured links add up to between the orchestrator and one edge host, each way."""

    host: str
    rate_bps: float
    delay_s: float
    loss_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """A whole network: `hosts` are the edge hosts, `orch` is the orchestrator's own host."""

    prefix: str
    seed: int
    orch: HostSpec
    hosts: tuple[HostSpec, ...]
    switches: tuple[SwitchSpec, ...]
    links: tuple[LinkSpec, ...]

    def all_hosts(self) -> tuple[HostSpec, ...]:
        """Return the orchestrator's host and the edge hosts."""
        return (self.orch, *self.hosts)

    def link(self, name: str) -> LinkSpec:
        """Return the link called `name`, in either order of its ends.

        Raises:
            SpecError: there is no such link.
        """
        for link in self.links:
            if name in (link.name, f"{link.b}-{link.a}"):
                return link
        raise SpecError(f"there is no link {name!r}; the links are {', '.join(li.name for li in self.links)}")

    def switch(self, name: str) -> SwitchSpec:
        """Return the switch called `name`."""
        for switch in self.switches:
            if switch.name == name:
                return switch
        raise SpecError(f"there is no switch {name!r}")

    def end_to_end(self, host: str) -> EndToEnd:
        """Add up the configured values of the shortest path from the orchestrator to the edge host `host`.

        Rate is that of the bottleneck, delays add up, losses combine as 1 - product(1 - loss).
        """
        spec = next((item for item in self.hosts if item.name == host), None)
        if spec is None:
            raise SpecError(f"there is no edge host {host!r}")
        names = (f"{ORCHESTRATOR}-c1", f"{spec.switch}-c1", f"{host}-{spec.switch}")
        path = [self.link(name).a_to_b for name in names]
        kept = float(np.prod([1 - link.loss_ratio for link in path]))
        return EndToEnd(
            host=host,
            rate_bps=min(link.rate_bps for link in path),
            delay_s=sum(link.delay_s for link in path),
            loss_ratio=1 - kept,
        )


def network_spec(scenario: Scenario) -> NetworkSpec:
    """Describe the network of `scenario`: edge hosts in domains behind gateways, a core with several paths.

    Every gateway is linked to every core switch, the core switches form a chain, `orch` is on the first.

    Raises:
        SpecError: the values cannot be emulated.
    """
    topology = scenario.topology
    ports = _PortNumbers()
    switches = _switches(topology.cores, topology.domains)
    hosts = tuple(_edge_host(scenario, number) for number in range(1, topology.hosts + 1))
    orch = HostSpec(
        name=ORCHESTRATOR,
        ip=ORCHESTRATOR_IP,
        mac=_mac(ORCHESTRATOR_IP),
        switch="c1",
        domain=None,
        trusted=True,
        device=None,
    )
    core = [(ORCHESTRATOR, "c1")]
    core += [(f"c{i}", f"c{i + 1}") for i in range(1, topology.cores)]
    core += [(f"g{g}", f"c{c}") for g in range(1, topology.domains + 1) for c in range(1, topology.cores + 1)]
    same = _core_impairment(scenario.links)
    links = [ports.link(a, b, kind=LinkKind.CORE, both=same) for a, b in core]
    for number, host in enumerate(hosts, start=1):
        drawn = access_impairment(scenario.links, seed=scenario.seed, host_number=number)
        links.append(ports.link(host.name, host.switch, kind=LinkKind.ACCESS, both=drawn))
    return NetworkSpec(
        prefix=scenario.network.prefix,
        seed=scenario.seed,
        orch=orch,
        hosts=hosts,
        switches=switches,
        links=tuple(links),
    )


def access_impairment(links: Links, *, seed: int, host_number: int) -> Impairment:
    """Draw what one host's access link does to packets, in both directions.

    Bandwidth, delay and loss between orchestrator and edge host are exponential (Pekel 2025, Table I),
    clipped to the floors and the ceiling in `links`. The access link carries all of bandwidth and loss, and
    the part of the delay that the two core links on the shortest path do not.
    """
    rate_mean, delay_mean, loss_mean = PEKEL_TABLE_I[links.setup]
    stream = np.random.default_rng([seed, _LINK_STREAM, host_number])
    rate_bps, delay_s, loss_ratio = stream.exponential((rate_mean, delay_mean, loss_mean))
    core_delay_s = 2 * links.core.delay_s
    return Impairment(
        rate_bps=max(float(rate_bps), links.rate_floor_bps),
        delay_s=max(max(float(delay_s), links.delay_floor_s) - core_delay_s, 0.0),
        loss_ratio=min(float(loss_ratio), links.loss_ceiling_ratio),
        queue_packets=links.queue_packets,
    )


def device(devices: Devices, *, seed: int, host_number: int) -> Device:
    """Draw a host's device: power is normal(mean, std), clipped at power_min (Pekel 2025, section IV)."""
    stream = np.random.default_rng([seed, _DEVICE_STREAM, host_number])
    power = max(float(stream.normal(devices.power_mean, devices.power_std)), devices.power_min)
    return Device(
        power=power,
        compute_flops=power * devices.flops_per_power,
        layer_overhead_s=devices.layer_overhead_s * devices.power_mean / power,
        memory_bytes=devices.shard_memory_bytes,
        nice=niceness(power, reference=devices.power_mean),
    )


def niceness(power: float, *, reference: float) -> int:
    """Return a device's process priority: 5 at the reference power, 5 steps lower for each halving."""
    return min(max(round(5 + 5 * log2(reference / power)), 0), 19)


def _core_impairment(links: Links) -> Impairment:
    core = links.core
    return Impairment(rate_bps=core.rate_bps, delay_s=core.delay_s, queue_packets=links.queue_packets)


def _switches(cores: int, domains: int) -> tuple[SwitchSpec, ...]:
    """Name the switches; the number can be read in the dpid: c2 is ..c002, g12 is ..a012."""
    core = [SwitchSpec(name=f"c{i}", dpid=f"{f'c{i:03d}':0>16}", role=SwitchRole.CORE) for i in _to(cores)]
    edge = [
        SwitchSpec(name=f"g{i}", dpid=f"{f'a{i:03d}':0>16}", role=SwitchRole.GATEWAY) for i in _to(domains)
    ]
    return (*core, *edge)


def _to(last: int) -> range:
    return range(1, last + 1)


def _edge_host(scenario: Scenario, number: int) -> HostSpec:
    domain = (number - 1) % scenario.topology.domains + 1
    subnet, rest = divmod(number - 1, _HOSTS_PER_SUBNET)
    ip = f"198.18.{1 + subnet}.{1 + rest}"
    return HostSpec(
        name=f"h{number}",
        ip=ip,
        mac=_mac(ip),
        switch=f"g{domain}",
        domain=domain,
        trusted=f"h{number}" in scenario.devices.trusted,
        device=device(scenario.devices, seed=scenario.seed, host_number=number),
    )


def _mac(ip: str) -> str:
    """Make a locally administered address from an IPv4 address."""
    return "02:00:" + ":".join(f"{int(part):02x}" for part in ip.split("."))


class _PortNumbers:
    """Hand out OpenFlow port numbers, per switch from 1, in the order of the links."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def link(self, a: str, b: str, *, kind: LinkKind, both: Impairment) -> LinkSpec:
        return LinkSpec(
            name=f"{a}-{b}",
            kind=kind,
            a=a,
            b=b,
            a_port=self._next(a),
            b_port=self._next(b),
            a_to_b=both,
            b_to_a=both,
        )

    def _next(self, node: str) -> int:
        if node.startswith(("h", ORCHESTRATOR)):
            return 0
        self._last[node] = self._last.get(node, 0) + 1
        return self._last[node]
