"""Build `edge_cloud` in Mininet: edge hosts behind gateways, a redundant core (Pekel 2025, Fig. 1).

By hand, with its links impaired as in a scenario:

    mn --custom topologies/edge_cloud.py --topo edge_cloud,hosts=4,seed=1 --controller remote,port=6653

Careful: when interrupted or failing, `mn` itself cleans up as `mn -c` does: it kills every ryu-manager and
removes every Open vSwitch bridge of the machine, those of a running testbed, too.

The parts (host, switch, link) work under any Mininet; topologies/network.py puts them together faster.
"""

from __future__ import annotations

import atexit
import os
import sys
from inspect import signature
from pathlib import Path
from typing import Any

from mininet.link import Intf, Link
from mininet.node import Host, OVSSwitch
from mininet.topo import Topo

try:
    import topologies
except ModuleNotFoundError:  # `mn --custom` executes this file from anywhere
    sys.path.insert(0, str(Path(sys._getframe().f_code.co_filename).resolve().parent.parent))
    import topologies  # noqa: F401

from scenarios.schema import ScenarioError, parse
from topologies import ovs
from topologies.errors import TopologyError
from topologies.links.wires import NO_OFFLOADS, End
from topologies.specs import PREFIX_LENGTH, HostSpec, LinkSpec, NetworkSpec, network_spec
from topologies.state import Journal, sweep
from topologies.wiring import Wiring, choose_backend


class EdgeHost(Host):  # type: ignore[misc]
    """A host with one interface, no IPv6 and no offloads (the userspace datapath needs real checksums)."""

    def __init__(self, name: str, *, spec: HostSpec, **params: Any) -> None:
        self.spec = spec
        super().__init__(name, **params)

    def config(self, **_: Any) -> dict[str, str]:
        """Configure the interface in one go."""
        interface = self.defaultIntf()
        interface.ip, interface.prefixLen, interface.mac = self.spec.ip, str(PREFIX_LENGTH), self.spec.mac
        said = self.cmd(
            "for f in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done; "
            f"ethtool -K {interface.name} {NO_OFFLOADS} > /dev/null && "
            f"ip addr add {self.spec.ip}/{PREFIX_LENGTH} brd + dev {interface.name} && "
            f"ip link set lo up && ip link set {interface.name} up || echo FAILED"
        )
        if "FAILED" in said:
            raise RuntimeError(f"host {self.name}: cannot be configured: {said}")
        return {}


class Switch(OVSSwitch):  # type: ignore[misc]
    """An OpenFlow 1.3 switch that forwards nothing by itself."""

    def __init__(self, name: str, *, wiring: Wiring, **params: Any) -> None:
        self._wiring = wiring
        super().__init__(name, protocols="OpenFlow13", failMode="secure", **params)

    def start(self, controllers: list[Any]) -> None:
        """Start; the first switch to start has the links impaired first, so that none is ever bare."""
        self._wiring.ensure_started()
        super().start(controllers)

    def bridgeOpts(self) -> str:
        """Mark the bridge as made here."""
        return f"{super().bridgeOpts()} {ovs.MARK}"


class Port(Intf):  # type: ignore[misc]
    """An end of a wire: made, named and brought up elsewhere (wiring.py and `EdgeHost.config`)."""

    def config(self, **_: Any) -> dict[str, str]:
        """Leave it as it is."""
        return {}


class Wire(Link):  # type: ignore[misc]
    """A link of the spec. With `batch` somebody else lays all wires at once before hosts are configured."""

    def __init__(
        self, node1: Any, node2: Any, *, spec: LinkSpec, wiring: Wiring, batch: bool, **kw: Any
    ) -> None:
        self._spec, self._wiring, self._batch = spec, wiring, batch
        super().__init__(node1, node2, fast=True, **kw)

    def makeIntfPair(
        self, intfname1: str, intfname2: str, addr1: Any, addr2: Any, node1: Any, node2: Any, **_: Any
    ) -> None:
        """Plan or lay the wire between two interfaces."""
        self._wiring.add(self._spec, _end(intfname1, node1), _end(intfname2, node2))
        if not self._batch:
            self._wiring.lay()

    def stop(self) -> None:
        """Remove the wires: they share one namespace, so the first link to stop takes all."""
        self._wiring.close()


def _end(interface: str, node: Any) -> End:
    if node.inNamespace:
        return End(interface=interface, namespace_pid=node.pid, mac=node.spec.mac)
    return End(interface=interface, namespace_pid=os.getpid())


class EdgeCloud(Topo):  # type: ignore[misc]
    """The network of a spec as a Mininet topology."""

    def build(
        self,
        spec: NetworkSpec | None = None,
        wiring: Wiring | None = None,
        datapath: str = "auto",
        batch: bool = False,
        **by_hand: Any,
    ) -> None:
        """Add hosts, switches and links.

        Without `spec`, `by_hand` are the words that people give to `mn`: hosts, domains, cores, setup, seed,
        prefix.
        """
        if spec is None or wiring is None:
            spec, wiring = _from_words(by_hand)
        datapath = ovs.choose_datapath(datapath)
        for host in spec.all_hosts():
            self.addHost(host.name, cls=EdgeHost, spec=host)
        names = {switch.name: f"{spec.prefix}-{switch.name}" for switch in spec.switches}
        for switch in spec.switches:
            name = names[switch.name]
            self.addSwitch(name, cls=Switch, dpid=switch.dpid, datapath=datapath, wiring=wiring)
        for link in spec.links:
            self.addLink(
                names.get(link.a, link.a),
                names.get(link.b, link.b),
                port1=link.a_port,
                port2=link.b_port,
                intfName1=interface_name(spec.prefix, link.a, link.a_port),
                intfName2=interface_name(spec.prefix, link.b, link.b_port),
                cls=Wire,
                intf=Port,
                spec=link,
                wiring=wiring,
                batch=batch,
            )


def interface_name(prefix: str, node: str, port: int) -> str:
    """Name an interface: `h1-eth0` at a host, `ut-g1.4` at a switch; at most 15 characters."""
    return f"{prefix}-{node}.{port}" if port else f"{node}-eth0"


def _from_words(words: dict[str, Any]) -> tuple[NetworkSpec, Wiring]:
    """Make what `mn` needs.

    What cannot be used ends the program by `SystemExit`: any other error has `mn` clean up the whole machine.
    """
    known = tuple(signature(_by_hand).parameters)
    unknown = [word for word in words if word not in known]
    if unknown:
        raise SystemExit(f"edge_cloud does not know {', '.join(unknown)}; it knows {', '.join(known)}")
    try:
        return _by_hand(**words)
    except (ScenarioError, TopologyError) as error:
        raise SystemExit(f"edge_cloud: {error}") from error


def _by_hand(
    hosts: int = 12, domains: int = 3, cores: int = 2, setup: int = 1, seed: int = 7, prefix: str = "mn"
) -> tuple[NetworkSpec, Wiring]:
    """Make what `mn` needs: a spec from a few words, and an open wiring that ends with `mn`."""
    scenario = parse(
        {
            "name": "by-hand",
            "seed": seed,
            "topology": {"hosts": hosts, "domains": _at_most(domains, hosts), "cores": cores},
            "links": {"setup": setup},
            "devices": {"trusted": []},
            "network": {"prefix": prefix},
            "finetune": {"policies": ["all"]},
        },
        source="the words after --topo edge_cloud",
    )
    journal = Journal.create(prefix)
    sweep(prefix)
    journal = Journal.create(prefix)
    spec = network_spec(scenario)
    wiring = Wiring(
        prefix,
        backend=choose_backend("auto"),
        seed=seed,
        state_dir=journal.directory,
        record=journal.add_process,
    )
    wiring.open()
    atexit.register(wiring.close)
    return spec, wiring


def _at_most(domains: int, hosts: object) -> int:
    """Have no more domains than hosts; what is wrong with `hosts` itself is for the schema to say."""
    return (
        min(domains, hosts) if isinstance(hosts, int) and hosts > 0 and isinstance(domains, int) else domains
    )


topos = {"edge_cloud": EdgeCloud}
