"""Carry IPv4 between hosts over explicit paths: loop-free by construction, nothing is ever flooded.

The first packet of a pair of hosts comes to the controller, which chooses a path (choosing.py), has its
rules put on the switches of it (routes.py), and then sends the packet on. A path stays until it breaks, or
until a link that came back makes it clearly better. Steering may pin a flow to a path: that goes before the
default as long as its links are up.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from ryu_apps import openflow, packets
from ryu_apps.arp import VIRTUAL_IPS, ArpProxy
from ryu_apps.choosing import Chooser, Costs, Hops
from ryu_apps.discovery import Host, Network, Switch, from_host_id, hop_id, to_host_id
from ryu_apps.flows import Flow, Place, Way
from ryu_apps.prober import Prober
from ryu_apps.routes import Route, Routes
from ryu_apps.signals import Change, Signals

LOG = logging.getLogger(__name__)

REPAIR_AFTER_S = 1.0
REFRESH_DELAY_S = 0.02
RETRY_S = 1.0
IMPROVE_DELAY_S = 3.0
RECONNECTED_S = 5.0
"""The links of a switch have all shown this long after it connected."""


class Forwarding:
    """Own which way every flow goes."""

    def __init__(
        self,
        network: Network,
        signals: Signals,
        *,
        prober: Prober,
        arp: ArpProxy,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        first_number: int = 1,
    ) -> None:
        self._network = network
        self._signals = signals
        self._arp = arp
        self._clock = clock
        self._sleep = sleep
        self.chooser = Chooser(network, prober, clock=clock, way_of=self.way)
        self._routes = Routes(
            network.switches,
            delay_into_s=self.chooser.delay_into_s,
            installed=self._installed,
            first_number=first_number,
        )
        self._unsent: set[Route] = set()
        self._refresh_at: float | None = None
        self._improve_at: float | None = None
        self.counts: Counter[str] = Counter()
        signals.connect(Change.LINK_DOWN, lambda hop: self._soon(improve=False))
        signals.connect(Change.LINK_UP, lambda hop: self._soon(improve=True))
        signals.connect(Change.SWITCH_UP, self.begin_anew)
        signals.connect(Change.SWITCH_DOWN, lambda switch: self._forget_rules(switch.dpid))
        signals.connect(Change.HOST_LEARNED, self._host_learned)
        signals.connect(Change.HOST_MOVED, lambda host: self._soon(improve=False))
        signals.connect(Change.HOST_LOST, self._host_lost)

    # Switches and hosts that come and go.

    def begin_anew(self, switch: Switch) -> None:
        """Write the rules that every switch has, and those of its routes again."""
        for message in openflow.base_rules(switch.datapath):
            switch.datapath.send_msg(message)
        switch.datapath.send_msg(openflow.barrier(switch.datapath))
        self._forget_rules(switch.dpid)

    def _forget_rules(self, dpid: int) -> None:
        """Note that a switch has none of our rules any more."""
        self._routes.forget_switch(dpid)
        self._soon(improve=False)

    def _soon(self, *, improve: bool) -> None:
        now = self._clock()
        if self._refresh_at is None:
            self._refresh_at = now + REFRESH_DELAY_S
        if improve:
            self._improve_at = now + IMPROVE_DELAY_S

    def _host_learned(self, host: Host) -> None:
        for flow in self.chooser.pinned_from_or_to(host.ip):
            self._apply(flow)

    def _host_lost(self, host: Host) -> None:
        for route in self._routes:
            if host.ip in (route.flow.src, route.flow.dst):
                self._routes.drop(route)

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
        if self._routes.look_after(now) and self._refresh_at is None:
            self._refresh_at = now + RETRY_S
        self._send_unsent()

    def barrier_arrived(self, dpid: int, transaction: int) -> None:
        """Take a switch's confirmation in."""
        self._routes.barrier_arrived(self._clock(), dpid, transaction)

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
        self._carry(now, Flow(src=src, dst=dst), (dpid, port), frame)

    def _carry(self, now: float, flow: Flow, place: Place, frame: bytes) -> None:
        route = self._routes.of(flow)
        if route.installing:
            route.pending.append((place, frame))
            return
        if self._is_intact(route) and now - route.installed_at < REPAIR_AFTER_S:
            self._send_on(route, place, frame)
            return
        route.pending.append((place, frame))
        self._lead(now, route, self.chooser.target(flow))
        answers = self._routes.of(flow.reversed())
        if not answers.installing and not self._is_intact(answers):
            self._lead(now, answers, self.chooser.target(answers.flow))

    def _send_on(self, route: Route, place: Place, frame: bytes) -> None:
        """Send a packet out where the route's rule would have sent it, later if the switch is busy.

        A packet that came in at an odd port joins the way where that passes its switch.
        """
        switch, out_port = self._network.switches.get(place[0]), route.rules.get(place)
        if out_port is None and route.way is not None:
            out_port = next((port for (dpid, _), port in route.way.rules() if dpid == place[0]), None)
        if switch is None or out_port is None:
            self.counts["dropped"] += 1
        elif openflow.congested(switch.datapath):
            route.pending.append((place, frame))
            self._unsent.add(route)
        else:
            switch.datapath.send(openflow.packet_out(frame, out_port))

    def _flush(self, route: Route) -> None:
        frames = list(route.pending)
        route.pending.clear()
        for place, frame in frames:
            self._send_on(route, place, frame)

    def _send_unsent(self) -> None:
        routes, self._unsent = self._unsent, set()
        for route in routes:
            if not route.installing:
                self._flush(route)

    # Looking after routes.

    def _is_planned(self, route: Route) -> bool:
        """Tell whether a route's way exists and leads to where its hosts are."""
        src, dst = self._network.hosts.get(route.flow.src), self._network.hosts.get(route.flow.dst)
        return (
            route.way is not None
            and src is not None
            and dst is not None
            and (route.way.start, route.way.end) == (src.place, dst.place)
            and self.chooser.are_up(route.way.hops)
        )

    def _is_intact(self, route: Route) -> bool:
        """Tell whether a route's rules are all in place and lead to where its hosts are."""
        return self._is_planned(route) and route.complete

    def _refresh(self, *, improve: bool) -> None:
        """Put every route right that is broken, and where `improve` says so move those that lose much."""
        now, costs = self._clock(), self.chooser.costs()
        for route in sorted(self._routes, key=lambda route: route.flow.traffic_class is not None):
            if {route.flow.src, route.flow.dst} <= self._network.hosts.keys():
                self._refresh_one(now, route, costs, improve=improve)

    def _refresh_one(self, now: float, route: Route, costs: Costs, *, improve: bool) -> None:
        if route.installing and self._is_planned(route):
            return
        intact = self._is_intact(route)
        if route.ending:
            if not intact:
                self._routes.drop(route)
            return
        if intact and not improve:
            return
        best = self.chooser.target(route.flow, costs)
        present = None if route.way is None else route.way.hops
        if intact and not self.chooser.is_better(route.flow, best, present, costs):
            return
        if route.way is not None or best is not None:
            self._lead(now, route, best)

    # Leading routes.

    def _lead(self, now: float, route: Route, hops: Hops | None) -> None:
        """Begin to lead a route over a way; without one, take its rules off.

        They stay where links are missing only because their switches are not, or just, connected.
        """
        src, dst = self._network.hosts[route.flow.src], self._network.hosts[route.flow.dst]
        if hops is None and self._may_work(route):
            self._routes.give_up(route)
        elif hops is None or src.place == dst.place:
            self._routes.clear(route)
        else:
            self._routes.install(now, route, Way(start=src.place, hops=hops, end=dst.place))

    def _may_work(self, route: Route) -> bool:
        """Tell whether every link of a way that is missing lacks its switch's connection, not its cable."""
        since = self._clock() - RECONNECTED_S
        settled = {
            switch.dpid for switch in self._network.switches.values() if switch.connected_since < since
        }
        return route.way is not None and all(
            self._network.has_hop(hop) or not {hop.src, hop.dst} <= settled for hop in route.way.hops
        )

    def _installed(self, route: Route) -> None:
        if not route.complete:  # a switch lost its rules meanwhile
            self._soon(improve=False)
        self._flush(route)
        if route.way is None or not {route.flow.src, route.flow.dst} <= self._network.hosts.keys():
            return
        LOG.info("route %s over %d switches", route.flow, len(route.way.hops) + 1)
        self._signals.emit(Change.PATH_INSTALLED, (route.flow, self.link_ids(route.flow, route.way.hops)))

    # For steering.

    def steer(self, flow: Flow, hops: Hops, *, by: str) -> None:
        """Lead a flow over a way from now on, whenever its links are up and its hosts known."""
        self.chooser.pin(flow, hops, by=by)
        self._apply(flow)

    def release(self, flow: Flow) -> None:
        """Lead a flow over its default way again."""
        self.chooser.unpin(flow)
        if flow.traffic_class is None:
            if self._routes.get(flow) is not None:
                self._apply(flow)
            return
        route = self._routes.get(flow)
        if route is not None:
            self._ensure(flow.pair)
            self._routes.end(self._clock(), route)

    def follow(self, flow: Flow) -> None:
        """Give a traffic class rules of its own on its pair's way, or its pin's, from now on."""
        self._apply(flow)

    def unfollow(self, flow: Flow) -> None:
        """Take a class's own rules off again, unless it is pinned."""
        if self.chooser.pin_of(flow) is None:
            self.release(flow)

    def _apply(self, flow: Flow) -> None:
        """Bring a flow on its way now, if its hosts are known and it is not on it or coming there."""
        if not {flow.src, flow.dst} <= self._network.hosts.keys():
            return
        if flow.traffic_class is not None:
            self._ensure(flow.pair)
        route, target = self._routes.of(flow), self.chooser.target(flow)
        on_its_way = route.way is not None and route.way.hops == target and self._is_planned(route)
        if route.ending or not (on_its_way and (route.installing or route.complete)):
            self._lead(self._clock(), route, target)

    def _ensure(self, flow: Flow) -> None:
        """See to it that a pair has a way: what of its class finds no rule takes that one."""
        route = self._routes.of(flow)
        if (
            not (route.installing or self._is_intact(route))
            and {flow.src, flow.dst} <= self._network.hosts.keys()
        ):
            self._lead(self._clock(), route, self.chooser.target(flow))

    def way(self, flow: Flow) -> Hops | None:
        """Return the way that a flow takes now, None when no rules of its own lead it all the way."""
        route = self._routes.get(flow)
        return route.way.hops if route is not None and route.way and self._is_intact(route) else None

    # For taking over switches.

    def owns(self, dpid: int, cookie: int) -> bool:
        """Tell whether a rule of a switch belongs to a route of this run."""
        return self._routes.owns(dpid, cookie)

    def restore(self, flow: Flow) -> bool:
        """Begin to lead a pair by rules of this run, if it can be led now; tell whether it is led."""
        if not {flow.src, flow.dst} <= self._network.hosts.keys() or self.chooser.target(flow) is None:
            return False
        self._ensure(flow)
        return True

    # For the northbound side.

    def links(self, src: str, dst: str, costs: Costs | None = None) -> list[str] | None:
        """Return the ids of the links from one known host to another, None when there is no way.

        The way is the installed one, else the one that a first packet would get.
        """
        flow = Flow(src=src, dst=dst)
        hops = self.way(flow)
        if hops is None:
            hops = self.chooser.target(flow, costs)
        return None if hops is None else self.link_ids(flow, hops)

    def chosen_by(self, src: str, dst: str, links: list[str] | None) -> str:
        """Return who chose these links for a pair: "default" or its pin."""
        flow = Flow(src=src, dst=dst)
        pin = self.chooser.pin_of(flow)
        return pin[1] if pin is not None and links == self.link_ids(flow, pin[0]) else "default"

    def link_ids(self, flow: Flow, hops: Hops) -> list[str]:
        """Return the ids of the links of a way between known hosts, those of the hosts included."""
        source, target = self._network.hosts[flow.src], self._network.hosts[flow.dst]
        return [from_host_id(source), *(hop_id(hop) for hop in hops), to_host_id(target)]
