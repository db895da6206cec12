"""The northbound documents of pins: how they stand, and which alternatives there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ryu_apps.discovery import Network, from_host_id, hop_id, to_host_id
from ryu_apps.flows import Flow
from ryu_apps.forwarding import Forwarding
from ryu_apps.objectives import Hops, Judged, Objective, candidates, judge, why_chosen, why_not
from ryu_apps.paths import METRICS, LinkValues, combine
from ryu_apps.pins import Pin, Wish
from ryu_apps.steering import State, Steering, access_of, links_between_switches, switches_of

BY_DELAY = Objective(weights={"delay": 1.0})
"""What the alternatives to an explicit path are ranked by."""

Document = dict[str, Any]


class PinViews:
    """Read what steering knows; change nothing."""

    def __init__(
        self,
        *,
        network: Network,
        forwarding: Forwarding,
        steering: Steering,
        link_values: Callable[[], dict[str, LinkValues]],
    ) -> None:
        self._network = network
        self._forwarding = forwarding
        self._steering = steering
        self._link_values = link_values

    def pins(self, k: int | None) -> list[Document]:
        """Return all pins."""
        return [self.pin(pin, k) for pin in self._steering.pins]

    def pin(self, pin: Pin, k: int | None) -> Document:
        """Return a pin as it stands, with `k` alternatives per direction if asked for."""
        values = {} if k is None else self._link_values()
        parts = []
        for flow in pin.flows:
            part = self._direction(flow)
            if k is not None:
                wanted = self._steering.direction(flow).wanted
                part["alternatives"] = self._alternatives(flow, pin.objective or BY_DELAY, wanted, values, k)
            parts.append(part)
        worst = max((part["state"] for part in parts), key=list(State).index)
        return {**pin.as_json(), "state": worst, "directions": parts}

    def _direction(self, flow: Flow) -> Document:
        direction = self._steering.direction(flow)
        state, reason = self._steering.state(direction)
        way = self._forwarding.way(flow)
        return {
            **flow.as_json(),
            "state": state,
            "reason": reason,
            "links": [] if way is None else self._forwarding.link_ids(flow, way),
            "changed_at": direction.changed_at,
            "moves": direction.moves,
            "explanation": direction.explanation,
        }

    def preview(self, wish: Wish) -> Document:
        """Return what a pin would choose now, with its alternatives; nothing is changed."""
        pin, values = self._steering.plan(wish), self._link_values()
        objective = pin.objective or BY_DELAY
        return {
            "directions": [
                {
                    **flow.as_json(),
                    "alternatives": self._alternatives(
                        flow, objective, pin.hops_of(flow), values, wish.k or 1
                    ),
                }
                for flow in pin.flows
            ]
        }

    def _alternatives(
        self, flow: Flow, objective: Objective, chosen: Hops | None, values: dict[str, LinkValues], k: int
    ) -> list[Document]:
        """Return the `k` best ways by an objective, and the chosen one if that is not among them."""
        if not {flow.src, flow.dst} <= self._network.hosts.keys():
            return []
        links = links_between_switches(self._network, values)
        ways = candidates(links, *switches_of(self._network, flow), objective)
        if chosen is not None and chosen not in ways:
            ways.append(chosen)
        judged = judge(objective, ways, links, access_of(self._network, flow, values))
        if not judged:
            return []
        wanted = judged[0].hops if chosen is None else chosen
        here = next((way for way in judged if way.hops == wanted), None)
        return [
            {
                "rank": rank,
                **self._values(flow, way.hops, values),
                "chosen": way is here,
                "score": way.score,
                "why": _why(objective, way, here, judged),
            }
            for rank, way in enumerate(judged, 1)
            if rank <= k or way is here
        ]

    def _values(self, flow: Flow, hops: Hops, values: dict[str, LinkValues]) -> Document:
        ends = from_host_id(self._network.hosts[flow.src]), to_host_id(self._network.hosts[flow.dst])
        links = [ends[0], *(hop_id(hop) for hop in hops), ends[1]]
        known = [values[link] for link in links if link in values]
        path = combine(known if len(known) == len(links) else [], no_path="its links have only just changed")
        return {"links": links, **{metric: getattr(path, metric).as_json() for metric in METRICS}}


def _why(objective: Objective, way: Judged, here: Judged | None, judged: list[Judged]) -> str:
    if here is None:
        return "not taken: the path that was asked for is down, the default path is taken until it is back"
    return why_chosen(objective, judged, way.hops) if way is here else why_not(objective, way, here)
