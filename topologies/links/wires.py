"""Lay out the wires: what every emulated link is made of, whichever back end impairs it.

A link between a and b is a Linux bridge with two ports in the namespace `<prefix>-wires`:

    node a  <--veth-->  a-b.a  [bridge a-b]  a-b.b  <--veth-->  node b

The bridge learns nothing, floods everything and forwards reserved addresses as far as Linux allows: a wire.
What goes from a to b leaves through `a-b.b`, so that is where its rate and queue are.
Functions here return commands; they run nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from topologies.specs import Impairment, LinkSpec

NO_OFFLOADS = "rx off tx off sg off tso off gso off gro off"
"""What `ethtool -K` is told at the ends of a wire, so that packets on it are those of a real one."""
FORWARD_ALL_RESERVED = 0xFFF8
"""Linux refuses bits 0 to 2: spanning tree, pause frames, link aggregation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a link: the interface's name at the node, and the namespace (a pid in it) of the node."""

    interface: str
    namespace_pid: int
    mac: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One direction of a link as the back ends see it: where packets enter and leave the wire."""

    name: str
    number: int
    ingress: str
    egress: str
    impairment: Impairment


def namespace(prefix: str) -> str:
    """Return the name of the namespace that holds all wires of the network called `prefix`."""
    return f"{prefix}-wires"


def namespace_settings() -> dict[str, str]:
    """Return the settings (path under /proc/sys/net to value) that make the namespace a bundle of wires."""
    return {
        "ipv6/conf/all/disable_ipv6": "1",
        "ipv6/conf/default/disable_ipv6": "1",
        "bridge/bridge-nf-call-iptables": "1",
        "bridge/bridge-nf-call-ip6tables": "0",
        "bridge/bridge-nf-call-arptables": "0",
    }


def wire_lines(link: LinkSpec, a: End, b: End) -> list[str]:
    """Return the `ip -batch` lines, for the wires' namespace, that make one wire and both its ends."""
    return [
        f"link add {link.name} type bridge stp_state 0 mcast_snooping 0 ageing_time 0 "
        f"group_fwd_mask {FORWARD_ALL_RESERVED}",
        *_port_lines(link.name, f"{link.name}.a", a),
        *_port_lines(link.name, f"{link.name}.b", b),
        f"link set {link.name} up",
    ]


def _port_lines(bridge: str, port: str, end: End) -> list[str]:
    address = f" address {end.mac}" if end.mac else ""
    return [
        f"link add {port} type veth peer name {end.interface}{address} netns {end.namespace_pid}",
        f"link set {port} master {bridge} up",
        f"link set {port} type bridge_slave learning off flood on mcast_flood on",
    ]


def directions(links: tuple[LinkSpec, ...]) -> list[Direction]:
    """List both directions of every link, numbered from 0."""
    found: list[Direction] = []
    for link in links:
        (forth, forth_does), (back, back_does) = link.directions()
        port_a, port_b = f"{link.name}.a", f"{link.name}.b"
        number = len(found)
        found.append(
            Direction(name=forth, number=number, ingress=port_a, egress=port_b, impairment=forth_does)
        )
        found.append(
            Direction(name=back, number=number + 1, ingress=port_b, egress=port_a, impairment=back_does)
        )
    return found
