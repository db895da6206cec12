"""Carry IPv4 between hosts over explicit paths: loop-free by construction, nothing is ever flooded.

The first packet of a pair of hosts comes to the controller, which chooses the path of least delay and puts
one exact rule per direction on each switch of it, the last switch first, each confirmed by a barrier before
the one before it: whoever meets a new rule finds the rest of the way in place. Then the packet goes on. A
path stays until it breaks, or until a link that came back makes it clearly better.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ryu_apps import openflow, packets
from ryu_apps.arp import VIRTUAL_IPS, ArpProxy
from ryu_apps.discovery import Host, Network, Switch, from_host_id, hop_id, to_host_id
from ryu_apps.paths import Hop, SwitchPath, least_delay_path, path_cost_s
from ryu_apps.prober import Prober
from ryu_apps.signals import Change, Signals

LOG = logging.getLogger(__name__)

MAX_PENDING = 32
INSTALL_TIMEOUT_S = 2.0
REPAIR_AFTER_S = 1.0
REFRESH_DELAY_S = 0.02
IMPROVE_DELAY_S = 3.0
BETTER_SHARE = 0.8
"""A path gives way to a better one only if that costs less than this share of it."""


@dataclass(slots=True, eq=False)
class _Route:
    """One direction of a pair: the rules it wants, and those it has."""

    src: str
    dst: str
    cookie: int
    hops: tuple[Hop, ...] | None = None
    end: tuple[int, int] | None = None
    start: int | None = None
    rules: dict[int, int] = field(default_factory=dict)
    """Output port per switch that has a confirmed rule."""
    steps: list[tuple[int, int]] = field(default_factory=list)
    """(switch, output port) still to do, the next one last."""
    awaited: tuple[int, int] | None = None
    """(switch, transaction) of the barrier under way."""
    started_at: float = 0.0
    installed_at: float = 0.0
    pending: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=MAX_PENDING))

    @property
    def installing(self) -> bool:
        return self.awaited is not None


class Forwarding:
    """Own the routes between hosts."""

    def __init__(
        self,
        network: Network,
        signals: Signals,
        *,
        prober: Prober,
        arp: ArpProxy,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._network = network
        self._signals = signals
        self._prober = prober
        self._arp = arp
        self._clock = clock
        self._sleep = sleep
        self._routes: dict[tuple[str, str], _Route] = {}
        self._barriers: dict[tuple[int, int], _Route] = {}
        self._unsent: set[_Route] = set()
        self._numbers = itertools.count(1)
        self._refresh_at: float | None = None
        self._improve_at: float | None = None
        self.counts: Counter[str] = Counter()
        signals.connect(Change.LINK_DOWN, lambda hop: self._soon(improve=False))
        signals.connect(Change.LINK_UP, lambda hop: self._soon(improve=True))
        signals.connect(Change.SWITCH_UP, self._switch_up)
        signals.connect(Change.SWITCH_DOWN, lambda switch: self._forget_rules(switch.dpid))
        signals.connect(Change.HOST_MOVED, lambda host: self._soon(improve=False))
        signals.connect(Change.HOST_LOST, self._host_lost)

    # Switches and hosts that come and go.

    def _switch_up(self, switch: Switch) -> None:
        for message in openflow.base_rules(switch.datapath):
            switch.datapath.send_msg(message)
        switch.datapath.send_msg(openflow.barrier(switch.datapath))
        self._forget_rules(switch.dpid)

    def _forget_rules(self, dpid: int) -> None:
        """Note that a switch has none of our rules any more."""
        for route in self._routes.values():
            route.rules.pop(dpid, None)
        self._soon(improve=False)

    def _soon(self, *, improve: bool) -> None:
        now = self._clock()
        if self._refresh_at is None:
            self._refresh_at = now + REFRESH_DELAY_S
        if improve:
            self._improve_at = now + IMPROVE_DELAY_S

    def _host_lost(self, host: Host) -> None:
        for key in [key for key in self._routes if host.ip in key]:
            self._remove_rules(self._routes[key], keep=())
            self._cancel(self._routes.pop(key))

    def run(self) -> None:
        """Look after the routes, for ever."""
        while True:
            self.look_after(self._clock())
            self._sleep(REFRESH_DELAY_S)

    def look_after(self, now: float) -> None:
        """Repair and improve routes when the network has changed; send what had to wait."""
        if self._refresh_at is not None and now >= self._refresh_at:
            self._refresh_at = None
            self._refresh(improve=False)
        if self._improve_at is not None and now >= self._improve_at:
            self._improve_at = None
            self._refresh(improve=True)
        self._expire(now)
        self._send_unsent()

    def _expire(self, now: float) -> None:
        """Give up on switches that do not confirm; the next packet of the pair tries anew."""
        for route in [
            route for route in self._barriers.values() if now - route.started_at > INSTALL_TIMEOUT_S
        ]:
            LOG.warning(
                "route %s -> %s was not confirmed within %g s", route.src, route.dst, INSTALL_TIMEOUT_S
            )
            self._cancel(route)
            route.rules.clear()

    # First packets.

    def packet_arrived(self, now: float, frame: bytes, dpid: int, port: int) -> None:
        """Take a packet in for which a switch had no rule.

        Raises:
            MalformedPacketError: it is no IPv4 packet.
        """
        packet = packets.parse_ipv4(frame)
        src, dst = packets.ip_text(packet.source), packets.ip_text(packet.destination)
        self.counts["table_miss"] += 1
        if (
            src == dst
            or packet.source in VIRTUAL_IPS
            or not packets.is_host_ip(packet.source)
            or not packets.is_host_ip(packet.destination)
            or not packets.is_unicast_mac(packet.source_mac)
        ):
            self.counts["ignored"] += 1
            return
        self._network.host_seen(now, src, packet.source_mac, dpid, port)
        if src not in self._network.hosts:
            return
        if dst not in self._network.hosts:
            self._arp.ask(now, packet.destination, waiting=src)
            return
        self._carry(now, src, dst, dpid, frame)

    def _carry(self, now: float, src: str, dst: str, dpid: int, frame: bytes) -> None:
        route = self._route(src, dst)
        if route.installing:
            route.pending.append((dpid, frame))
            return
        if self._is_intact(route) and now - route.installed_at < REPAIR_AFTER_S:
            self._send_on(route, dpid, frame)
            return
        route.pending.append((dpid, frame))
        path = self._choose(src, dst)
        self._install(now, route, path)
        back = self._route(dst, src)
        if not back.installing and not self._is_intact(back):
            self._install(now, back, self._reversed(path))

    def _route(self, src: str, dst: str) -> _Route:
        route = self._routes.get((src, dst))
        if route is None:
            cookie = openflow.COOKIE_PAIR | next(self._numbers) & 0xFFFFFFFF
            route = self._routes[src, dst] = _Route(src=src, dst=dst, cookie=cookie)
        return route

    def _send_on(self, route: _Route, dpid: int, frame: bytes) -> None:
        """Send a packet out where the route's rule would have sent it, later if the switch is busy."""
        switch, out_port = self._network.switches.get(dpid), route.rules.get(dpid)
        if switch is None or out_port is None:
            self.counts["dropped"] += 1
        elif openflow.congested(switch.datapath):
            route.pending.append((dpid, frame))
            self._unsent.add(route)
        else:
            switch.datapath.send(openflow.packet_out(frame, out_port))

    def _flush(self, route: _Route) -> None:
        frames = list(route.pending)
        route.pending.clear()
        for dpid, frame in frames:
            self._send_on(route, dpid, frame)

    def _send_unsent(self) -> None:
        routes, self._unsent = self._unsent, set()
        for route in routes:
            if not route.installing:
                self._flush(route)

    # Choosing.

    def _costs(self) -> dict[Hop, float | None]:
        """Return the delay of every link that is up in both directions, the mean of both."""
        now = self._clock()
        costs: dict[Hop, float | None] = {}
        for hop in self._network.hops:
            back = _back(hop)
            if self._network.has_hop(back):
                delays = [self._delay(hop, now), self._delay(back, now)]
                known = [delay for delay in delays if delay is not None]
                costs[hop] = sum(known) / len(known) if known else None
        return costs

    def _delay(self, hop: Hop, now: float) -> float | None:
        stream = self._prober.hop_stream(hop)
        return None if stream is None else stream.delay.delay(now).value

    def _choose(
        self, src: str, dst: str, costs: dict[Hop, float | None] | None = None
    ) -> tuple[Hop, ...] | None:
        """Return the best way between two hosts, the same for both directions."""
        first, second = sorted((src, dst))
        ends = self._network.hosts[first].dpid, self._network.hosts[second].dpid
        if not all(end in self._network.switches for end in ends):
            return None
        found: SwitchPath | None = least_delay_path(self._costs() if costs is None else costs, *ends)
        if found is None:
            return None
        return found.hops if src == first else self._reversed(found.hops)

    @staticmethod
    def _reversed(hops: tuple[Hop, ...] | None) -> tuple[Hop, ...] | None:
        return None if hops is None else tuple(_back(hop) for hop in reversed(hops))

    def _is_intact(self, route: _Route) -> bool:
        """Tell whether a route's rules are all in place and lead to where its hosts are."""
        src, dst = self._network.hosts.get(route.src), self._network.hosts.get(route.dst)
        if route.hops is None or src is None or dst is None:
            return False
        if route.start != src.dpid or route.end != dst.place:
            return False
        links = all(self._network.has_hop(hop) and self._network.has_hop(_back(hop)) for hop in route.hops)
        return links and all(route.rules.get(dpid) == port for dpid, port in _wanted(route.hops, dst))

    def _refresh(self, *, improve: bool) -> None:
        """Put every route right that is broken, and where `improve` says so move those that lose much."""
        now, costs = self._clock(), self._costs()
        for route in list(self._routes.values()):
            if route.src not in self._network.hosts or route.dst not in self._network.hosts:
                continue
            if route.installing and self._is_planned(route):
                continue
            intact = self._is_intact(route)
            if intact and not improve:
                continue
            best = self._choose(route.src, route.dst, costs)
            if intact and not self._is_better(best, route.hops, costs):
                continue
            if route.hops is not None or best is not None:
                self._install(now, route, best)

    def _is_planned(self, route: _Route) -> bool:
        """Tell whether the way that is being installed still exists."""
        src, dst = self._network.hosts[route.src], self._network.hosts[route.dst]
        return (
            route.hops is not None
            and (route.start, route.end) == (src.dpid, dst.place)
            and all(self._network.has_hop(hop) and self._network.has_hop(_back(hop)) for hop in route.hops)
        )

    @staticmethod
    def _is_better(
        best: tuple[Hop, ...] | None, now: tuple[Hop, ...] | None, costs: dict[Hop, float | None]
    ) -> bool:
        if best is None or now is None or best == now:
            return False
        return path_cost_s(best, costs) < BETTER_SHARE * path_cost_s(now, costs)

    # Installing.

    def _install(self, now: float, route: _Route, hops: tuple[Hop, ...] | None) -> None:
        """Begin to put the rules of a route on the switches; without a way, take them off."""
        self._cancel(route, keep_pending=True)
        src, dst = self._network.hosts[route.src], self._network.hosts[route.dst]
        route.hops = hops
        if hops is None or src.place == dst.place:
            route.pending.clear()
            self._remove_rules(route, keep=())
            return
        route.start, route.end, route.started_at = src.dpid, dst.place, now
        route.steps = _wanted(hops, dst)
        self._step(route)

    def _step(self, route: _Route) -> None:
        """Do the next switch of a route, from the last one to the first."""
        if not route.steps:
            self._installed(route)
            return
        dpid, out_port = route.steps.pop()
        switch = self._network.switches.get(dpid)
        if switch is None:
            self._cancel(route)
            return
        confirm = openflow.barrier(switch.datapath)
        route.awaited = (dpid, confirm.xid)
        self._barriers[route.awaited] = route
        route.rules[dpid] = out_port
        switch.datapath.send_msg(
            openflow.pair_rule(
                switch.datapath, src=route.src, dst=route.dst, out_port=out_port, cookie=route.cookie
            )
        )
        switch.datapath.send_msg(confirm)

    def barrier_arrived(self, dpid: int, transaction: int) -> None:
        """Go on with the route that waited for this confirmation, if one did."""
        route = self._barriers.pop((dpid, transaction), None)
        if route is not None and route.awaited == (dpid, transaction):
            route.awaited = None
            self._step(route)

    def _installed(self, route: _Route) -> None:
        route.installed_at = self._clock()
        hops = route.hops or ()
        dst = self._network.hosts.get(route.dst)
        if dst is None:
            return
        self._remove_rules(route, keep=[dpid for dpid, _ in _wanted(hops, dst)])
        self._flush(route)
        LOG.info("route %s -> %s over %d switches", route.src, route.dst, len(hops) + 1)
        self._signals.emit(Change.PATH_INSTALLED, (route.src, route.dst, self.links(route.src, route.dst)))

    def _cancel(self, route: _Route, *, keep_pending: bool = False) -> None:
        if route.awaited is not None:
            self._barriers.pop(route.awaited, None)
        route.awaited = None
        route.steps = []
        if not keep_pending:
            route.pending.clear()

    def _remove_rules(self, route: _Route, *, keep: list[int] | tuple[()]) -> None:
        for dpid in [dpid for dpid in route.rules if dpid not in keep]:
            route.rules.pop(dpid, None)
            switch = self._network.switches.get(dpid)
            if switch is not None:
                switch.datapath.send_msg(openflow.delete_pair(switch.datapath, src=route.src, dst=route.dst))

    # For the northbound side.

    def links(self, src: str, dst: str, costs: dict[Hop, float | None] | None = None) -> list[str] | None:
        """Return the ids of the links from one known host to another, None when there is no way.

        The way is the installed one, else the one that a first packet would get.
        """
        source, target = self._network.hosts[src], self._network.hosts[dst]
        route = self._routes.get((src, dst))
        intact = route is not None and self._is_intact(route)
        hops = route.hops if route is not None and intact else self._choose(src, dst, costs)
        if hops is None:
            return None
        return [from_host_id(source), *(hop_id(hop) for hop in hops), to_host_id(target)]

    def costs(self) -> dict[Hop, float | None]:
        """Return what links cost now, to ask `links` for many pairs."""
        return self._costs()


def _wanted(hops: tuple[Hop, ...], dst: Host) -> list[tuple[int, int]]:
    """Return (switch, output port) along a way, from the first switch to the last."""
    return [*((hop.src, hop.src_port) for hop in hops), dst.place]


def _back(hop: Hop) -> Hop:
    return Hop(src=hop.dst, src_port=hop.dst_port, dst=hop.src, dst_port=hop.src_port)
