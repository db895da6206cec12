"""What the controller knows of the network: switches, ports, links between switches, hosts.

The one owner of that state. It is told what was seen and emits what changed; it sends nothing itself.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ryu_apps.packets import mac_text
from ryu_apps.paths import Hop
from ryu_apps.signals import Change, Signals

LOG = logging.getLogger(__name__)

SETTLE_S = 1.0
"""So long after a port came up, a port without a link is taken for a host's."""
MOVED_CABLE_S = 1.0
ALIVE_S = 3.0
"""A switch that has spoken so lately is there: it answers four echo requests per second."""
SWITCH_GRACE_S = 15.0
"""Hosts of a switch that left are remembered so long, so that a reconnecting switch loses none."""
FLAPS = 3
FLAP_WINDOW_S = 10.0
HOLD_DOWN_S = 3.0
"""A link that was lost so often within the window comes back once it has stayed whole for so long."""
MAX_FLAPPING = 4096
MAX_HOSTS_PER_PORT = 256
HELD_S = 1.5
"""A host that was heard at its port so lately is still there, whoever claims its address elsewhere."""
TELL_CONFLICT_S = 10.0
MAX_CLAIMS = 256


@dataclass(slots=True)
class Port:
    """A port of a switch."""

    number: int
    name: str
    up: bool
    since: float


@dataclass(slots=True)
class Switch:
    """A connected switch; `datapath` is the connection to it (connection.py)."""

    dpid: int
    name: str
    datapath: Any
    connected_since: float
    ports: dict[int, Port] = field(default_factory=dict)


@dataclass(slots=True)
class Claim:
    """A place that claims the address of a host which is still heard elsewhere."""

    dpid: int
    port: int
    made_at: float
    told_at: float


@dataclass(slots=True)
class Host:
    """A host at the edge port where it was seen last."""

    ip: str
    mac: bytes
    dpid: int
    port: int
    last_seen: float

    @property
    def place(self) -> tuple[int, int]:
        """Return the edge port as (dpid, port)."""
        return self.dpid, self.port


def dpid_text(dpid: int) -> str:
    """Return the 16 hex digits of a datapath id."""
    return f"{dpid:016x}"


def hop_id(hop: Hop) -> str:
    """Return the id of a link between switches."""
    return f"{dpid_text(hop.src)}.{hop.src_port}-{dpid_text(hop.dst)}.{hop.dst_port}"


def from_host_id(host: Host) -> str:
    """Return the id of the link from a host to its switch."""
    return f"{host.ip}-{dpid_text(host.dpid)}.{host.port}"


def to_host_id(host: Host) -> str:
    """Return the id of the link from a switch to its host."""
    return f"{dpid_text(host.dpid)}.{host.port}-{host.ip}"


def _places(hop: Hop) -> tuple[tuple[int, int], tuple[int, int]]:
    return (hop.src, hop.src_port), (hop.dst, hop.dst_port)


class Network:
    """Hold the network's state and emit its changes through `signals`."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self.switches: dict[int, Switch] = {}
        self.hosts: dict[str, Host] = {}
        self.lost_hosts: dict[str, Host] = {}
        """Hosts that vanished with their port; asked for when it comes back."""
        self.claims: dict[str, Claim] = {}
        """The last claim to each address that was in conflict; whoever asks again once it is silent."""
        self.counts: Counter[str] = Counter()
        self._heard: dict[tuple[int, int], float] = {}
        """When a host has last answered at a port."""
        self._links: dict[tuple[int, int], Hop] = {}
        self._linked_in: dict[tuple[int, int], Hop] = {}
        self._last_probe: dict[Hop, float] = {}
        self._losses: dict[Hop, deque[float]] = {}
        """When each link was lost lately."""
        self._departed: dict[int, float] = {}

    @property
    def hops(self) -> Iterable[Hop]:
        """Return the links between switches."""
        return self._links.values()

    def link_from(self, dpid: int, port: int) -> Hop | None:
        """Return the link that starts at a port."""
        return self._links.get((dpid, port))

    def has_hop(self, hop: Hop) -> bool:
        """Tell whether a link is up."""
        return self._links.get((hop.src, hop.src_port)) == hop

    def switch_joined(self, now: float, switch: Switch) -> bool:
        """Take a switch in, in place of a silent connection of the same one; tell whether it was.

        While the earlier connection is alive, another switch claims its id: the first one keeps it.
        """
        earlier = self.switches.get(switch.dpid)
        if earlier is not None:
            silent_s = now - earlier.datapath.heard_at
            if silent_s < ALIVE_S:
                LOG.warning(
                    "refused a second switch %s at %s: that at %s has spoken %.1f s ago",
                    dpid_text(switch.dpid),
                    switch.datapath.address,
                    earlier.datapath.address,
                    silent_s,
                )
                self._signals.emit(Change.SWITCH_REFUSED, switch)
                return False
            self.switch_left(now, earlier.datapath)
        self._departed.pop(switch.dpid, None)
        self.switches[switch.dpid] = switch
        LOG.info(
            "switch %s (%s) joined with %d ports", dpid_text(switch.dpid), switch.name, len(switch.ports)
        )
        self._signals.emit(Change.SWITCH_UP, switch)
        for port in list(switch.ports.values()):
            if port.up:
                self._signals.emit(Change.PORT_UP, (switch, port))
        for host in [host for host in self.hosts.values() if host.dpid == switch.dpid]:
            if not self._port_is_up(*host.place):
                self._lose(host)
        return True

    def switch_left(self, now: float, datapath: Any) -> None:
        """Forget the switch behind a closed connection; another connection of the same switch stays."""
        switch = self.switches.get(datapath.id)
        if switch is None or switch.datapath is not datapath:
            return
        for port in switch.ports.values():
            if port.up:
                self._cut(now, switch, port)
        del self.switches[switch.dpid]
        self._departed[switch.dpid] = now
        LOG.info("switch %s (%s) left", dpid_text(switch.dpid), switch.name)
        self._signals.emit(Change.SWITCH_DOWN, switch)

    def port_changed(self, now: float, dpid: int, number: int, name: str, *, up: bool) -> None:
        """Note a port's state."""
        switch = self.switches.get(dpid)
        if switch is None:
            return
        port = switch.ports.get(number)
        if port is None:
            port = switch.ports[number] = Port(number=number, name=name, up=False, since=now)
        port.name = name
        if port.up == up:
            return
        port.up, port.since = up, now
        self._heard.pop((dpid, number), None)
        if up:
            self._signals.emit(Change.PORT_UP, (switch, port))
        else:
            self._cut(now, switch, port)
            self._lose_all_at(dpid, number)

    def port_removed(self, now: float, dpid: int, number: int) -> None:
        """Forget a port."""
        switch = self.switches.get(dpid)
        if switch is None or number not in switch.ports:
            return
        self.port_changed(now, dpid, number, switch.ports[number].name, up=False)
        del switch.ports[number]

    def _cut(self, now: float, switch: Switch, port: Port) -> None:
        """Take down the links that start or end at a port, then tell that it went down."""
        for hop in (
            self._links.get((switch.dpid, port.number)),
            self._linked_in.get((switch.dpid, port.number)),
        ):
            if hop is not None:
                self.link_lost(now, hop)
        self._signals.emit(Change.PORT_DOWN, (switch, port))

    def probe_arrived(self, now: float, hop: Hop) -> bool:
        """Note that a probe crossed `hop`; tell whether it is a link now.

        A port that seems to reach another switch than before does so once the old link has been silent;
        one where a host answers reaches none: that host may have got hold of a probe.
        """
        if not (self._port_is_up(hop.src, hop.src_port) and self._port_is_up(hop.dst, hop.dst_port)):
            return False
        if self.has_hop(hop):
            self._last_probe[hop] = now
            return True
        if self._is_held_down(now, hop):
            self.counts["held_down"] += 1
            return False
        if self.has_live_host(now, hop.src, hop.src_port) or self.has_live_host(now, hop.dst, hop.dst_port):
            return False
        for old in (self._links.get((hop.src, hop.src_port)), self._linked_in.get((hop.dst, hop.dst_port))):
            if old is not None and now - self._last_probe[old] < MOVED_CABLE_S:
                return False
        for old in (self._links.get((hop.src, hop.src_port)), self._linked_in.get((hop.dst, hop.dst_port))):
            if old is not None and self.has_hop(old):
                self.link_lost(now, old)
        self._add(now, hop)
        return True

    def _is_held_down(self, now: float, hop: Hop) -> bool:
        losses = self._losses.get(hop)
        return (
            losses is not None
            and len(losses) == FLAPS
            and now - losses[0] < FLAP_WINDOW_S
            and now - max(losses[-1], *(self._up_since(*place) for place in _places(hop))) < HOLD_DOWN_S
        )

    def _up_since(self, dpid: int, number: int) -> float:
        return self.switches[dpid].ports[number].since

    def _note_loss(self, hop: Hop, now: float) -> None:
        if len(self._losses) >= MAX_FLAPPING:
            self._losses.clear()
        self._losses.setdefault(hop, deque(maxlen=FLAPS)).append(now)

    def _add(self, now: float, hop: Hop) -> None:
        self._links[hop.src, hop.src_port] = hop
        self._linked_in[hop.dst, hop.dst_port] = hop
        self._last_probe[hop] = now
        for place in _places(hop):
            self._lose_all_at(*place)
        LOG.info("link %s is up", hop_id(hop))
        self._signals.emit(Change.LINK_UP, hop)

    def link_lost(self, now: float, hop: Hop) -> None:
        """Take a link down."""
        if not self.has_hop(hop):
            return
        del self._links[hop.src, hop.src_port]
        del self._linked_in[hop.dst, hop.dst_port]
        del self._last_probe[hop]
        self._note_loss(hop, now)
        LOG.info("link %s is down", hop_id(hop))
        self._signals.emit(Change.LINK_DOWN, hop)

    def last_probe_at(self, hop: Hop) -> float:
        """Return when a probe crossed a link that is up."""
        return self._last_probe[hop]

    def _port_is_up(self, dpid: int, number: int) -> bool:
        switch = self.switches.get(dpid)
        port = None if switch is None else switch.ports.get(number)
        return port is not None and port.up

    def is_edge(self, now: float, dpid: int, number: int) -> bool:
        """Tell whether a port is up, has had the time to show a link, and shows none."""
        if not self._port_is_up(dpid, number):
            return False
        if (dpid, number) in self._links or (dpid, number) in self._linked_in:
            return False
        return now - self.switches[dpid].ports[number].since >= SETTLE_S

    def edge_ports(self, now: float) -> Iterator[tuple[Switch, Port]]:
        """Yield the ports that hosts may be at."""
        for switch in list(self.switches.values()):
            for port in list(switch.ports.values()):
                if self.is_edge(now, switch.dpid, port.number):
                    yield switch, port

    def host_seen(self, now: float, ip: str, mac: bytes, dpid: int, port: int) -> Host | None:
        """Note that a host sent something into a port; None when hosts are not learned there."""
        if not self.is_edge(now, dpid, port):
            return None
        host = self.hosts.get(ip)
        if host is None:
            return self._learn(now, ip, mac, dpid, port)
        if host.place != (dpid, port) and now - host.last_seen < HELD_S:
            self._claim(now, Host(ip=ip, mac=mac, dpid=dpid, port=port, last_seen=now))
            return None
        host.last_seen = now
        if (host.mac, host.dpid, host.port) != (mac, dpid, port):
            host.mac, host.dpid, host.port = mac, dpid, port
            LOG.info("host %s moved to port %d of %s", ip, port, dpid_text(dpid))
            self.claims.pop(ip, None)
            self._signals.emit(Change.HOST_MOVED, host)
        return host

    def _claim(self, now: float, claimed: Host) -> None:
        """Remember that another place claims a host's address, and tell it now and then."""
        self.counts["conflicts"] += 1
        old = self.claims.get(claimed.ip)
        if old is None and len(self.claims) >= MAX_CLAIMS:
            return
        tell = old is None or now - old.told_at >= TELL_CONFLICT_S
        told_at = now if old is None or tell else old.told_at
        self.claims[claimed.ip] = Claim(dpid=claimed.dpid, port=claimed.port, made_at=now, told_at=told_at)
        if tell:
            LOG.warning(
                "host %s is claimed at port %d of %s too", claimed.ip, claimed.port, dpid_text(claimed.dpid)
            )
            self._signals.emit(Change.HOST_CONFLICT, claimed)

    def open_claims(self, now: float) -> Iterator[tuple[str, Claim]]:
        """Yield the claims to addresses whose hosts have fallen silent; forget those that are old."""
        for ip, claim in list(self.claims.items()):
            host = self.hosts.get(ip)
            if host is None or now - claim.made_at > TELL_CONFLICT_S:
                del self.claims[ip]
            elif now - host.last_seen >= HELD_S and self.is_edge(now, claim.dpid, claim.port):
                yield ip, claim

    def has_live_host(self, now: float, dpid: int, port: int) -> bool:
        """Tell whether a host was heard at a port in the last seconds: no link begins or ends there."""
        return now - self._heard.get((dpid, port), -math.inf) < ALIVE_S

    def host_answered(self, now: float, host: Host) -> None:
        """Note that a host has answered a probe where it is."""
        host.last_seen = self._heard[host.place] = now

    def _learn(self, now: float, ip: str, mac: bytes, dpid: int, port: int) -> Host | None:
        if sum(host.place == (dpid, port) for host in self.hosts.values()) >= MAX_HOSTS_PER_PORT:
            self.counts["not_learned"] += 1
            return None
        host = self.hosts[ip] = Host(ip=ip, mac=mac, dpid=dpid, port=port, last_seen=now)
        self.lost_hosts.pop(ip, None)
        LOG.info("host %s (%s) learned at port %d of %s", ip, mac_text(mac), port, dpid_text(dpid))
        self._signals.emit(Change.HOST_LEARNED, host)
        return host

    def _lose_all_at(self, dpid: int, port: int) -> None:
        for host in [host for host in self.hosts.values() if host.place == (dpid, port)]:
            self._lose(host)

    def _lose(self, host: Host) -> None:
        if self.hosts.pop(host.ip, None) is None:
            return
        if len(self.lost_hosts) < MAX_HOSTS_PER_PORT * 16:
            self.lost_hosts[host.ip] = host
        LOG.info("host %s at port %d of %s is lost", host.ip, host.port, dpid_text(host.dpid))
        self._signals.emit(Change.HOST_LOST, host)

    def forget_silent(self, now: float, silent_s: float) -> None:
        """Lose hosts that have been silent for so long, and those of switches that did not come back."""
        for host in list(self.hosts.values()):
            departed = self._departed.get(host.dpid)
            gone = departed is not None and now - departed > SWITCH_GRACE_S
            if gone or now - host.last_seen > silent_s:
                self._lose(host)
