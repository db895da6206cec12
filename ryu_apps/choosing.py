"""Say which way every flow should take: its pin's while that can be used, else the one of least delay.

What is chosen here is put on switches by forwarding.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ryu_apps.discovery import Network
from ryu_apps.flows import Flow, Place, back, back_along
from ryu_apps.paths import Hop, SwitchPath, least_delay_path, path_cost_s
from ryu_apps.prober import Prober

BETTER_SHARE = 0.8
"""A path gives way to a better one only if that costs less than this share of it."""
UNMEASURED_DRAIN_S = 0.5
"""How long packets may be on a link whose delay is not known."""

Hops = tuple[Hop, ...]
Costs = Mapping[Hop, float | None]


class Chooser:
    """Own the pins, and choose on what is measured now; `way_of` gives the way that a flow takes now."""

    def __init__(
        self,
        network: Network,
        prober: Prober,
        *,
        clock: Callable[[], float],
        way_of: Callable[[Flow], Hops | None],
    ) -> None:
        self._network = network
        self._prober = prober
        self._clock = clock
        self._way_of = way_of
        self._pins: dict[Flow, tuple[Hops, str]] = {}

    def pin(self, flow: Flow, hops: Hops, *, by: str) -> None:
        """Choose this way for a flow from now on, whenever its links are up."""
        self._pins[flow] = hops, by

    def unpin(self, flow: Flow) -> None:
        """Choose a flow's way by delay again."""
        self._pins.pop(flow, None)

    def pin_of(self, flow: Flow) -> tuple[Hops, str] | None:
        """Return the way that a flow is pinned to, whether or not it can be used now, and by what."""
        return self._pins.get(flow)

    def pinned_from_or_to(self, ip: str) -> list[Flow]:
        """List the pinned flows that have a host at an end."""
        return [flow for flow in self._pins if ip in (flow.src, flow.dst)]

    def costs(self) -> dict[Hop, float | None]:
        """Return the delay of every link that is up in both directions, the mean of both."""
        now = self._clock()
        costs: dict[Hop, float | None] = {}
        for hop in self._network.hops:
            if self._network.has_hop(back(hop)):
                delays = [self._delay(hop, now), self._delay(back(hop), now)]
                known = [delay for delay in delays if delay is not None]
                costs[hop] = sum(known) / len(known) if known else None
        return costs

    def delay_into_s(self, place: Place) -> float:
        """Return how long packets may be on the link that ends at a place."""
        hop = self._network.link_from(*place)
        delay_s = None if hop is None else self._delay(back(hop), self._clock())
        return UNMEASURED_DRAIN_S if delay_s is None else delay_s

    def target(self, flow: Flow, costs: Costs | None = None) -> Hops | None:
        """Return the way that a flow of known hosts should take: its pin's, its pair's, the default."""
        pin = self._pins.get(flow)
        if pin is not None and self.is_usable(flow, pin[0]):
            return pin[0]
        if flow.traffic_class is None:
            return self._default(flow, costs)
        pairs_way = self._way_of(flow.pair)
        return self.target(flow.pair, costs) if pairs_way is None else pairs_way

    def is_usable(self, flow: Flow, hops: Hops) -> bool:
        """Tell whether a way leads from a flow's source to its destination over links that are up."""
        src, dst = self._network.hosts.get(flow.src), self._network.hosts.get(flow.dst)
        if src is None or dst is None or not {src.dpid, dst.dpid} <= self._network.switches.keys():
            return False
        ends = (hops[0].src, hops[-1].dst) if hops else (dst.dpid, src.dpid)
        return ends == (src.dpid, dst.dpid) and self.are_up(hops)

    def are_up(self, hops: Hops) -> bool:
        """Tell whether all links of a way are up in both directions."""
        return all(self._network.has_hop(hop) and self._network.has_hop(back(hop)) for hop in hops)

    def is_better(self, flow: Flow, best: Hops | None, present: Hops | None, costs: Costs) -> bool:
        """Tell whether a flow whose way works should move: to a pin always, else if that gains enough."""
        if best is None or present is None or best == present:
            return False
        pin = self._pins.get(flow)
        if flow.traffic_class is not None or (pin is not None and best == pin[0]):
            return True
        return path_cost_s(best, costs) < BETTER_SHARE * path_cost_s(present, costs)

    def _default(self, flow: Flow, costs: Costs | None) -> Hops | None:
        """Return the best way between two known hosts, the same for both directions."""
        first, second = sorted((flow.src, flow.dst))
        ends = self._network.hosts[first].dpid, self._network.hosts[second].dpid
        if not all(end in self._network.switches for end in ends):
            return None
        found: SwitchPath | None = least_delay_path(self.costs() if costs is None else costs, *ends)
        if found is None:
            return None
        return found.hops if flow.src == first else back_along(found.hops)

    def _delay(self, hop: Hop, now: float) -> float | None:
        stream = self._prober.hop_stream(hop)
        return None if stream is None else stream.delay.delay(now).value
