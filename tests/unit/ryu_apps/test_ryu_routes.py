"""Whatever ways flows change between and however slow switches are, packets arrive once, without a loop.

Switches apply what they are told late, in order, and each at a pace of its own; packets take their time on
links. Events run in the order of a virtual clock.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ryu.ofproto import ofproto_v1_3, ofproto_v1_3_parser

from ryu_apps.discovery import Switch
from ryu_apps.flows import Flow, Place, TrafficClass, Way, back
from ryu_apps.paths import Hop
from ryu_apps.routes import Routes

SRC, DST = "198.18.0.1", "198.18.0.2"
PAIR = Flow(src=SRC, dst=DST)
WEB = Flow(src=SRC, dst=DST, traffic_class=TrafficClass(protocol="tcp", dst_port=80))
URGENT = Flow(src=SRC, dst=DST, traffic_class=TrafficClass(dscp=46))
HOST_PORT = 99
PACKET_GAP_S = 0.01
LOOK_S = 0.02
PACKETS = [
    {"ip_proto": 17, "ip_dscp": 0},
    {"ip_proto": 6, "tcp_dst": 80, "ip_dscp": 0},
    {"ip_proto": 6, "tcp_dst": 80, "ip_dscp": 46},
]


class SlowSwitch:
    """A switch that carries each message out some time after the one before it."""

    ofproto, ofproto_parser = ofproto_v1_3, ofproto_v1_3_parser

    def __init__(self, dpid: int, net: Net) -> None:
        self.id, self.net = dpid, net
        self.rules: dict[tuple[int, frozenset[Any]], int] = {}
        self.busy_until = 0.0
        self.transactions = itertools.count(1)

    def set_xid(self, message: Any) -> None:
        message.set_xid(next(self.transactions))

    def send_msg(self, message: Any) -> None:
        self.busy_until = max(self.busy_until, self.net.now) + self.net.stream.uniform(0, 0.1)
        self.net.at(self.busy_until, lambda: self.carry_out(message))

    def carry_out(self, message: Any) -> None:
        if isinstance(message, ofproto_v1_3_parser.OFPBarrierRequest):
            routes, delay_s = self.net.routes, self.net.stream.uniform(0, 0.05)
            self.net.at(
                self.net.now + delay_s, lambda: routes.barrier_arrived(self.net.now, self.id, message.xid)
            )
            return
        rule = message.priority, frozenset(message.match.items())
        if message.command == ofproto_v1_3.OFPFC_DELETE_STRICT:
            self.rules.pop(rule, None)
        else:
            self.rules[rule] = message.instructions[0].actions[0].port

    def output(self, fields: dict[str, Any]) -> int | None:
        found = [(key[0], port) for key, port in self.rules.items() if key[1] <= fields.items()]
        return max(found)[1] if found else None


class Net:
    """A random connected mesh between the switches of two hosts."""

    def __init__(self, seed: int, size: int) -> None:
        self.stream = random.Random(seed)
        self.now, self.events, self.order = 0.0, [], itertools.count()
        self.delays: dict[Hop, float] = {}
        dpids = list(range(1, size + 1))
        tree = [(self.stream.randrange(1, dpid), dpid) for dpid in dpids[1:]]
        others = [pair for pair in itertools.combinations(dpids, 2) if self.stream.random() < 0.6]
        for a, b in {*tree, *others}:
            hop = Hop(src=a, src_port=b, dst=b, dst_port=a)
            self.delays[hop], self.delays[back(hop)] = (self.stream.uniform(0.001, 0.1) for _ in "ab")
        self.switches = {dpid: SlowSwitch(dpid, self) for dpid in dpids}
        self.start, self.end = (1, HOST_PORT), (size, HOST_PORT)
        joined = {
            dpid: Switch(dpid=dpid, name="", datapath=switch, connected_since=0.0)
            for dpid, switch in self.switches.items()
        }
        self.routes = Routes(
            joined, delay_into_s=self.delay_into_s, installed=lambda route: None, first_number=1
        )
        self.arrived: Counter[int] = Counter()
        self.lost: list[str] = []

    def delay_into_s(self, place: Place) -> float:
        return next((delay for hop, delay in self.delays.items() if (hop.dst, hop.dst_port) == place), 0.0)

    def way(self) -> Way:
        """Return a random simple way between the hosts."""
        taken: list[Hop] = []
        here = self.start[0]
        while here != self.end[0]:
            hop = self.stream.choice([hop for hop in self.delays if hop.src == here])
            taken.append(hop)
            here = hop.dst
            for number, earlier in enumerate(taken):
                if earlier.src == here:
                    del taken[number:]
                    break
        return Way(start=self.start, hops=tuple(taken), end=self.end)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), what))

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = until

    def look_after(self, until: float) -> None:
        self.routes.look_after(self.now)
        if self.now < until:
            self.at(self.now + LOOK_S, lambda: self.look_after(until))

    def enter(self, number: int, kind: int, place: Place, passed: tuple[Place, ...] = ()) -> None:
        """Let a packet come in at a place."""
        if place in passed:
            self.lost.append(f"packet {number} of kind {kind} in a loop at {place} after {passed}")
            return
        out_port = self.switches[place[0]].output(
            {"in_port": place[1], "eth_type": 0x0800, "ipv4_src": SRC, "ipv4_dst": DST, **PACKETS[kind]}
        )
        if out_port is None:
            self.lost.append(f"packet {number} of kind {kind} without a rule at {place} after {passed}")
        elif (place[0], out_port) == self.end:
            self.arrived[number] += 1
        else:
            hop = Hop(src=place[0], src_port=out_port, dst=out_port, dst_port=place[0])
            self.at(
                self.now + self.delays[hop],
                lambda: self.enter(number, kind, (hop.dst, hop.dst_port), (*passed, place)),
            )


CHANGES = st.lists(
    st.tuples(st.sampled_from([PAIR, PAIR, WEB, URGENT]), st.booleans(), st.floats(0.0, 1.5)), max_size=12
)


def play(seed: int, size: int, changes: list[tuple[Flow, bool, float]]) -> Net:
    """Send packets all the time while flows are led over random ways, or their classes given up."""
    net = Net(seed, size)
    routes = net.routes
    routes.install(0.0, routes.of(PAIR), net.way())
    net.run(3.0)
    assert routes.of(PAIR).complete
    when = net.now
    for flow, ends, gap_s in changes:
        when += gap_s

        def change(flow: Flow = flow, ends: bool = ends) -> None:
            route = routes.get(flow)
            if not ends or flow is PAIR:
                routes.install(net.now, routes.of(flow), net.way())
            elif route is not None:
                routes.end(net.now, route)

        net.at(when, change)
    last = when + 30.0
    net.look_after(last)
    sent = itertools.count()
    for step in range(int((when + 4.0 - net.now) / PACKET_GAP_S)):
        number = next(sent)
        kind = net.stream.randrange(len(PACKETS))
        net.at(
            net.now + step * PACKET_GAP_S, lambda number=number, kind=kind: net.enter(number, kind, net.start)
        )
    net.run(last + 5.0)
    assert net.lost == []
    assert net.arrived == Counter(range(next(sent)))
    return net


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 7), changes=CHANGES)
def test_every_packet_arrives_once_and_without_a_loop_through_any_changes(
    seed: int, size: int, changes: list[tuple[Flow, bool, float]]
) -> None:
    net = play(seed, size, changes)
    wanted: Counter[Place] = Counter()
    for route in net.routes:
        assert route.complete
        assert route.way is not None
        assert route.rules == dict(route.way.rules())
        wanted.update(list(route.rules))
    there = {
        (switch.id, dict(match)["in_port"], priority)
        for switch in net.switches.values()
        for priority, match in switch.rules
    }
    assert Counter((dpid, in_port) for dpid, in_port, _ in there) == wanted


def test_a_way_that_was_given_up_half_way_does_no_harm() -> None:
    for seed in range(8):
        play(seed, 6, [(PAIR, False, 0.05)] * 10)


def test_a_class_that_ends_does_not_strand_packets_of_another_one_on_its_old_way() -> None:
    changes = [(WEB, False, 1.03125), (PAIR, False, 3.25), (WEB, True, 0.09375), (PAIR, False, 0.0)]
    later = [(WEB, True, 1.2578125), (URGENT, False, 0.0), (PAIR, False, 0.0)]
    for seed in (9002, *range(20)):
        play(seed, 7, [*changes, *later])


@pytest.mark.parametrize("flow", [WEB, URGENT])
def test_the_rules_of_a_class_that_was_given_up_are_gone(flow: Flow) -> None:
    net = play(1, 5, [(flow, False, 0.1), (flow, True, 1.0), (PAIR, False, 0.5)])
    assert [route.flow for route in net.routes] == [PAIR]


def test_classes_that_overlap_have_different_priorities() -> None:
    choices = [("tcp", None), (80, None), (99, None), (46, None)]
    seen = {}
    for protocol, dst_port, src_port, dscp in itertools.product(*choices):
        if protocol is None and (dscp is None or dst_port or src_port):
            continue
        part = TrafficClass(protocol=protocol, dst_port=dst_port, src_port=src_port, dscp=dscp)
        assert seen.setdefault(part.precedence, part) == part
    assert len(seen) == 9
    assert all(1 <= precedence <= 15 for precedence in seen)
