"""Keep flows on the ways they are pinned to: explicit ones, or the best by an objective as measured now."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ryu_apps.discovery import Network, dpid_text, from_host_id, hop_id, to_host_id
from ryu_apps.errors import ConflictError, NotFoundError
from ryu_apps.flows import Flow, back
from ryu_apps.forwarding import Forwarding
from ryu_apps.objectives import (
    Hops,
    Objective,
    Patience,
    candidates,
    judge,
    why_chosen,
)
from ryu_apps.paths import Hop, LinkValues
from ryu_apps.pins import MAX_PINS, Pin, PinFile, Wish, resolve
from ryu_apps.signals import Change, Signals

LOG = logging.getLogger(__name__)

LOOK_S = 0.1
EVALUATE_S = 1.0
SEARCHES = 2
"""So many times per round ways are looked up: that takes tens of milliseconds in a large network."""
CANDIDATES_S = 10.0
"""Which ways are compared is looked up anew so often, and when links come or go."""


class State(StrEnum):
    """How a direction of a pin stands."""

    INSTALLED = "installed"
    INSTALLING = "installing"
    FALLBACK = "fallback"
    WAITING = "waiting"


@dataclass(slots=True, eq=False)
class Direction:
    """One direction of a pin: where it should go, why, and how it stands."""

    pin: Pin
    flow: Flow
    wanted: Hops | None = None
    explanation: str = "not evaluated yet"
    patience: Patience = field(default_factory=Patience)
    moves: int = 0
    changed_at: float = 0.0
    told: tuple[State, Hops | None] | None = None


def links_between_switches(network: Network, values: dict[str, LinkValues]) -> dict[Hop, LinkValues]:
    """Return the links between switches that are up in both directions, with their values."""
    return {
        hop: values[hop_id(hop)]
        for hop in network.hops
        if network.has_hop(back(hop)) and hop_id(hop) in values
    }


def access_of(network: Network, flow: Flow, values: dict[str, LinkValues]) -> list[LinkValues]:
    """Return the values of the links between a flow's known hosts and their switches."""
    ends = from_host_id(network.hosts[flow.src]), to_host_id(network.hosts[flow.dst])
    return [values[end] for end in ends if end in values]


def switches_of(network: Network, flow: Flow) -> tuple[int, int]:
    """Return the switches of a flow's known hosts."""
    return network.hosts[flow.src].dpid, network.hosts[flow.dst].dpid


class Steering:
    """Own the pins."""

    def __init__(
        self,
        network: Network,
        signals: Signals,
        *,
        forwarding: Forwarding,
        link_values: Callable[[], dict[str, LinkValues]],
        file: PinFile,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._network = network
        self._signals = signals
        self._forwarding = forwarding
        self._link_values = link_values
        self._file = file
        self._clock = clock
        self._sleep = sleep
        self._pins: dict[str, Pin] = {}
        self._directions: dict[Flow, Direction] = {}
        self._evaluate_at = 0.0
        self._topology_at = 0.0
        self._ways: dict[tuple[int, int, frozenset[str]], tuple[float, list[Hops]]] = {}
        """What is worth comparing between two switches, by what is weighed, and when it was looked up."""
        self._searches_left = 0
        self.counts: Counter[str] = Counter()
        for change in (Change.LINK_UP, Change.LINK_DOWN, Change.HOST_LEARNED, Change.HOST_MOVED):
            signals.connect(change, lambda _: self._topology_changed())
        for pin in file.read():
            self._take(pin)

    # Pins.

    def create(self, wish: Wish) -> Pin:
        """Pin a flow.

        Raises:
            RequestError: a host or switch is unknown, the path is wrong, the flow is pinned already, there
                are too many pins, or they cannot be kept.
        """
        pin = self.plan(wish)
        self._check_free(pin)
        self._file.write([*self._pins.values(), pin])
        self._take(pin)
        self.counts["created"] += 1
        LOG.info("pin %s: %s", pin.id, pin.flow)
        self._look(self._clock(), evaluate=True)
        return pin

    def plan(self, wish: Wish) -> Pin:
        """Return the pin that a request asks for, checked against the network."""
        src, dst = (self._host(ip) for ip in (wish.flow.src, wish.flow.dst))
        if src.place == dst.place:
            raise ConflictError(
                f"hosts {src.ip} and {dst.ip} are at the same port of switch {dpid_text(src.dpid)}: "
                "no switch carries their traffic"
            )
        hops = None
        if wish.path is not None:
            up = [hop for hop in self._network.hops if self._network.has_hop(back(hop))]
            hops = resolve(wish.path, up=up, dpids=self._network.switches, src=src, dst=dst)
        number = max((int(name[1:]) for name in self._pins), default=0) + 1
        return Pin(
            id=f"p{number}",
            flow=wish.flow,
            both_directions=wish.both_directions,
            hops=hops,
            objective=wish.objective,
            created_at=self._clock(),
        )

    def _check_free(self, pin: Pin) -> None:
        for flow in pin.flows:
            other = self._directions.get(flow)
            if other is not None:
                raise ConflictError(
                    f"{flow} is pinned by {other.pin.id} already; "
                    f"DELETE /northbound/v1/paths/{other.pin.id} first"
                )
        if len(self._pins) >= MAX_PINS:
            raise ConflictError(f"there are {MAX_PINS} pins, the most there may be; delete one of them first")

    def _host(self, ip: str) -> Any:
        host = self._network.hosts.get(ip)
        if host is None:
            known = ", ".join(sorted(self._network.hosts)[:50]) or "none"
            raise NotFoundError(
                f"host {ip} is not known (hosts become known when they send something); known hosts: {known}"
            )
        return host

    def _take(self, pin: Pin) -> None:
        self._pins[pin.id] = pin
        for flow in pin.flows:
            direction = Direction(pin=pin, flow=flow, changed_at=self._clock())
            self._directions[flow] = direction
            hops = pin.hops_of(flow)
            if hops is not None:
                direction.wanted, direction.explanation = hops, "the path that was asked for"
                self._forwarding.steer(flow, hops, by=f"pin {pin.id}")

    def delete(self, pin_id: str) -> None:
        """Lead the flow of a pin over its default way again.

        Raises:
            RequestError: there is no such pin, or the others cannot be kept.
        """
        pin = self.get(pin_id)
        self._file.write([other for other in self._pins.values() if other is not pin])
        del self._pins[pin_id]
        self.counts["deleted"] += 1
        LOG.info("pin %s is deleted: %s", pin.id, pin.flow)
        for flow in pin.flows:
            direction = self._directions.pop(flow)
            self._forwarding.release(flow)
            self._tell(direction, "deleted", None, "deleted")

    def get(self, pin_id: str) -> Pin:
        """Return a pin.

        Raises:
            NotFoundError: there is none of that id.
        """
        pin = self._pins.get(pin_id)
        if pin is None:
            known = ", ".join(list(self._pins)[:50]) or "none"
            raise NotFoundError(f"pin {pin_id[:100]} is not known; known pins: {known}")
        return pin

    @property
    def pins(self) -> list[Pin]:
        """Return all pins, the oldest first."""
        return list(self._pins.values())

    def direction(self, flow: Flow) -> Direction:
        """Return how a pinned flow stands."""
        return self._directions[flow]

    # Looking after them.

    def run(self) -> None:
        """Look after the pins, for ever."""
        while True:
            self._sleep(LOOK_S)
            self.look_after(self._clock())

    def look_after(self, now: float) -> None:
        """Evaluate objectives when it is time, and tell of pins that stand otherwise than before."""
        if self._directions:
            self._look(now, evaluate=now >= self._evaluate_at)

    def _topology_changed(self) -> None:
        self._topology_at = self._clock()
        self._evaluate_at = 0.0

    def _look(self, now: float, *, evaluate: bool) -> None:
        if evaluate:
            self._evaluate_at, self._searches_left = now + EVALUATE_S, SEARCHES
            by_objective = [d for d in self._directions.values() if d.pin.objective is not None]
            by_objective.sort(key=lambda direction: direction.wanted is not None)
            values = self._link_values() if by_objective else {}
            for direction in by_objective:
                self._evaluate(now, direction, direction.pin.objective, values)
        for direction in list(self._directions.values()):
            self._compare(now, direction)

    def _evaluate(
        self, now: float, direction: Direction, objective: Objective | None, values: dict[str, LinkValues]
    ) -> None:
        """Lead a direction over the best way, if it is not there already or close enough to it."""
        flow = direction.flow
        if objective is None or not self._hosts_known(flow):
            return
        links = links_between_switches(self._network, values)
        ways = self._candidates(now, links, switches_of(self._network, flow), objective)
        if ways is None:
            return
        judged = judge(objective, ways, links, access_of(self._network, flow, values))
        if not judged:
            direction.wanted, direction.explanation = None, "no way leads there now"
            return
        chosen = direction.patience.choose(now, objective, judged, direction.wanted)
        direction.explanation = why_chosen(objective, judged, chosen)
        if chosen != direction.wanted:
            direction.moves += direction.wanted is not None
            direction.wanted = chosen
            LOG.info("pin %s, %s: %s", direction.pin.id, flow, direction.explanation)
            self._forwarding.steer(flow, chosen, by=f"pin {direction.pin.id}")

    def _candidates(
        self, now: float, links: dict[Hop, LinkValues], ends: tuple[int, int], objective: Objective
    ) -> list[Hops] | None:
        """Return the ways worth comparing; None when there is no time to look them up in this round."""
        key = *ends, frozenset(objective.weights)
        at, ways = self._ways.get(key, (None, None))
        if at is not None and at > self._topology_at and now - at <= CANDIDATES_S:
            return ways
        if self._searches_left <= 0:
            self._evaluate_at = now
            return ways
        self._searches_left -= 1
        if len(self._ways) >= 2 * MAX_PINS:
            self._ways.clear()
        ways = candidates(links, *ends, objective)
        self._ways[key] = now, ways
        return ways

    def _hosts_known(self, flow: Flow) -> bool:
        return {flow.src, flow.dst} <= self._network.hosts.keys()

    def _compare(self, now: float, direction: Direction) -> None:
        state, reason = self.state(direction)
        way = self._forwarding.way(direction.flow)
        if direction.told != (state, way):
            direction.told, direction.changed_at = (state, way), now
            self.counts[f"became_{state}"] += 1
            self._tell(direction, state, way, reason)

    def _tell(self, direction: Direction, state: str, way: Hops | None, reason: str | None) -> None:
        flow = direction.flow
        known = way is not None and self._hosts_known(flow)
        datum = {
            "id": direction.pin.id,
            **flow.as_json(),
            "state": state,
            "reason": reason,
            "links": self._forwarding.link_ids(flow, way) if known and way is not None else [],
        }
        self._signals.emit(Change.PIN_CHANGED, datum)

    def state(self, direction: Direction) -> tuple[State, str | None]:
        """Return how a direction stands, and why where it is not as it should be."""
        flow, wanted = direction.flow, direction.wanted
        for ip in (flow.src, flow.dst):
            if ip not in self._network.hosts:
                return State.WAITING, f"host {ip} is not known now; the pin waits for it"
        if wanted is None:
            return State.FALLBACK, direction.explanation
        if not self._forwarding.chooser.is_usable(flow, wanted):
            return (
                State.FALLBACK,
                f"{self._trouble(flow, wanted)}; the default path is taken until it is back",
            )
        if self._forwarding.way(flow) == wanted:
            return State.INSTALLED, None
        return State.INSTALLING, "its rules are not all confirmed, or its links have only just come back"

    def _trouble(self, flow: Flow, wanted: Hops) -> str:
        for hop in wanted:
            for each in (hop, back(hop)):
                if not self._network.has_hop(each):
                    return f"link {hop_id(each)} is down"
        for ip, end in (
            (flow.src, wanted[0].src if wanted else 0),
            (flow.dst, wanted[-1].dst if wanted else 0),
        ):
            dpid = self._network.hosts[ip].dpid
            if dpid not in self._network.switches:
                return f"switch {dpid_text(dpid)} of host {ip} is not connected"
            if end not in (0, dpid):
                return f"host {ip} is at switch {dpid_text(dpid)}, the path is for {dpid_text(end)}"
        return "its hosts have moved to different switches"
