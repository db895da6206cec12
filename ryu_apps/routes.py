"""Put the rules of routes on switches, and change them without losing a packet: make before break.

Every rule names the port where its packets come in. A new way is written from its last switch to its first,
each rule confirmed by a barrier before the one ahead of it, so that whoever meets a new rule finds the rest
of the way in place; rules of the old way stay until the packets on it have arrived. By induction over single
rule changes, whatever was begun and given up before: from every rule in place the packets reach their host,
and no place is passed twice. A traffic class is a layer of rules above its pair's; packets only ever change
to a higher layer on their way, so the same holds for layers together.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ryu_apps import openflow
from ryu_apps.discovery import Switch
from ryu_apps.flows import Flow, Place, Way

LOG = logging.getLogger(__name__)

MAX_PENDING = 32
INSTALL_TIMEOUT_S = 2.0
DRAIN_MARGIN_S = 1.0
"""What rules of an old way outlive its delay by: queues on it, and switches that apply changes late."""


@dataclass(slots=True, eq=False)
class Route:
    """The way of one flow: the rules it wants, and those it has."""

    flow: Flow
    cookie: int
    way: Way | None = None
    rules: dict[Place, int] = field(default_factory=dict)
    """Output port per place that has a rule, as last sent."""
    leads_to: dict[Place, Place] = field(default_factory=dict)
    """The place that packets come to next, per place that has a rule; none for the last."""
    steps: list[tuple[Place, int]] = field(default_factory=list)
    """Rules still to write, the next one last."""
    awaited: tuple[int, int] | None = None
    """(switch, transaction) of the barrier under way."""
    started_at: float = 0.0
    installed_at: float = 0.0
    remove_at: float | None = None
    """When the rules that are not of the way may go."""
    ending: bool = False
    """Whether the route goes altogether once the packets on its old way have arrived."""
    pending: deque[tuple[Place, bytes]] = field(default_factory=lambda: deque(maxlen=MAX_PENDING))

    @property
    def installing(self) -> bool:
        return self.awaited is not None

    @property
    def complete(self) -> bool:
        """Whether all rules of the way are in place and confirmed."""
        return (
            self.way is not None
            and not self.installing
            and all(self.rules.get(place) == out_port for place, out_port in self.way.rules())
        )

    def stale(self) -> list[Place]:
        """Return the places whose rules are not of the way."""
        wanted = set() if self.way is None else {place for place, _ in self.way.rules()}
        return [place for place in self.rules if place not in wanted]

    def first_stale(self) -> list[Place]:
        """Return those of the stale places to which no other stale rule leads."""
        stale = self.stale()
        reached = {self.leads_to.get(place) for place in stale}
        return [place for place in stale if place not in reached] or stale

    def note_written(self, place: Place, out_port: int) -> None:
        """Note that a rule of the way was sent."""
        assert self.way is not None
        places = [place for place, _ in self.way.rules()]
        following = places[places.index(place) + 1 :]
        self.rules[place] = out_port
        self.leads_to.pop(place, None)
        if following:
            self.leads_to[place] = following[0]


class Routes:
    """Own the rules of all routes."""

    def __init__(
        self,
        switches: Mapping[int, Switch],
        *,
        delay_into_s: Callable[[Place], float],
        installed: Callable[[Route], None],
        first_number: int,
    ) -> None:
        """Write to `switches`; `delay_into_s` says how long packets may be on the link into a place.

        Cookies count from `first_number`, so that rules of another run are told apart.
        """
        self._switches = switches
        self._delay_into_s = delay_into_s
        self._tell_installed = installed
        self._routes: dict[Flow, Route] = {}
        self._barriers: dict[tuple[int, int], Route] = {}
        self._draining: set[Route] = set()
        self._numbers = itertools.count(first_number)

    def __iter__(self) -> Iterator[Route]:
        return iter(list(self._routes.values()))

    def get(self, flow: Flow) -> Route | None:
        """Return the route of a flow."""
        return self._routes.get(flow)

    def of(self, flow: Flow) -> Route:
        """Return the route of a flow, a new one without rules if there is none."""
        route = self._routes.get(flow)
        if route is None:
            cookie = openflow.COOKIE_PAIR | next(self._numbers) & 0xFFFFFFFF
            route = self._routes[flow] = Route(flow=flow, cookie=cookie)
        return route

    def install(self, now: float, route: Route, way: Way, *, ending: bool = False) -> None:
        """Begin to lead a route over a way; with `ending`, to drop it once that is done."""
        self._stop(route)
        route.way, route.started_at, route.steps, route.ending = way, now, way.rules(), ending
        self._step(now, route)

    def _step(self, now: float, route: Route) -> None:
        """Write the next rule of a route, from the last switch to the first."""
        if not route.steps:
            self._finish(now, route)
            return
        place, out_port = route.steps.pop()
        switch = self._switches.get(place[0])
        if switch is None:
            self.give_up(route)
            return
        confirm = openflow.barrier(switch.datapath)
        route.awaited = (place[0], confirm.xid)
        self._barriers[route.awaited] = route
        route.note_written(place, out_port)
        switch.datapath.send_msg(
            openflow.flow_rule(
                switch.datapath, route.flow, in_port=place[1], out_port=out_port, cookie=route.cookie
            )
        )
        switch.datapath.send_msg(confirm)

    def barrier_arrived(self, now: float, dpid: int, transaction: int) -> None:
        """Go on with the route that waited for this confirmation, if one did."""
        route = self._barriers.pop((dpid, transaction), None)
        if route is not None and route.awaited == (dpid, transaction):
            route.awaited = None
            self._step(now, route)

    def _finish(self, now: float, route: Route) -> None:
        route.installed_at = now
        stale = route.stale()
        if stale or route.ending:
            route.remove_at = now + DRAIN_MARGIN_S + sum(self._delay_into_s(place) for place in stale)
            self._draining.add(route)
        self._tell_installed(route)

    def give_up(self, route: Route) -> None:
        """Leave a way unfinished; what is in place of it stays until another one replaces it."""
        self._stop(route)
        route.way = None
        route.pending.clear()

    def _stop(self, route: Route) -> None:
        if route.awaited is not None:
            self._barriers.pop(route.awaited, None)
        route.awaited, route.steps, route.remove_at = None, [], None
        self._draining.discard(route)

    def clear(self, route: Route) -> None:
        """Take a route's rules off at once: there is no way, or nobody to send to."""
        self.give_up(route)
        self._remove(route, list(route.rules))

    def drop(self, route: Route) -> None:
        """Forget a route and its rules at once."""
        self.clear(route)
        self._routes.pop(route.flow, None)

    def end(self, now: float, route: Route) -> None:
        """Lead a class's route over its pair's way, where its rules make no difference, then drop it.

        Without a way of the pair it is dropped at once.
        """
        pair = self._routes.get(route.flow.pair)
        if pair is None or pair.way is None or pair is route:
            self.drop(route)
        else:
            self.install(now, route, pair.way, ending=True)

    def look_after(self, now: float) -> bool:
        """Remove rules of old ways that have drained, and give up on switches that do not confirm.

        Tell whether a route was given up.
        """
        for route in [route for route in self._draining if now >= (route.remove_at or 0.0)]:
            self._drained(now, route)
        overdue = [r for r in self._barriers.values() if now - r.started_at > INSTALL_TIMEOUT_S]
        for route in overdue:
            LOG.warning("route %s was not confirmed within %g s", route.flow, INSTALL_TIMEOUT_S)
            self.give_up(route)
        return bool(overdue)

    def _drained(self, now: float, route: Route) -> None:
        """Go on removing: what is stale from its beginning to its end, one place after the other.

        Packets of another class may still come to a stale rule; while it is there, so is the rest of its way.
        """
        self._remove(route, route.first_stale())
        stale = route.stale()
        if stale:
            route.remove_at = now + DRAIN_MARGIN_S + max(self._delay_into_s(place) for place in stale)
            return
        self._stop(route)
        if not route.ending:
            return
        pair = self._routes.get(route.flow.pair)
        if pair is not None and not (pair.complete and pair.way == route.way):
            self.end(now, route)
        else:
            self.drop(route)

    def _remove(self, route: Route, places: list[Place]) -> None:
        for place in places:
            route.rules.pop(place, None)
            switch = self._switches.get(place[0])
            if switch is not None:
                switch.datapath.send_msg(openflow.delete_flow(switch.datapath, route.flow, in_port=place[1]))

    def owns(self, dpid: int, cookie: int) -> bool:
        """Tell whether a route has rules with this cookie on a switch."""
        return any(
            route.cookie == cookie and any(place[0] == dpid for place in route.rules)
            for route in self._routes.values()
        )

    def forget_switch(self, dpid: int) -> None:
        """Note that a switch has none of our rules any more."""
        for route in self._routes.values():
            for place in [place for place in route.rules if place[0] == dpid]:
                del route.rules[place]
