"""Trains on a network: which may be under way together, and what others' traffic does to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ryu.ofproto import ofproto_v1_3_parser as parser
from ryu_world import World

from ryu_apps.probe import Kind, Probe
from ryu_apps.train_plan import FRAME_BYTES

CAPACITY_BPS = 16e6


class Counting:
    """A switch that answers requests for single counts, with others' traffic added at a rate."""

    def __init__(self, world: World, dpid: int, others_bps: float = 0.0) -> None:
        self.world, self.dpid, self.others_bps = world, dpid, others_bps
        self.switch = world.switches[dpid]
        self._send = self.switch.send_msg
        self.switch.send_msg = self.send_msg

    def send_msg(self, message: Any) -> None:
        if not isinstance(message, parser.OFPPortStatsRequest):
            self._send(message)
            return
        own = self.world.parts.monitor._ports[self.dpid, message.port_no].own
        seconds = self.world.now - 1_799_999_000.0
        others = int(self.others_bps / 8 * seconds)
        entry = SimpleNamespace(
            port_no=message.port_no,
            duration_sec=int(seconds),
            duration_nsec=int(seconds % 1 * 1e9),
            tx_bytes=int(own.tx) + others,
            rx_bytes=int(own.rx),
        )
        self.world.parts.monitor.replied(self.world.now, self.dpid, message.xid, [entry])


def world_with_hosts() -> World:
    world = World()
    for ip, dpid, port in (("198.18.0.1", 1, 11), ("198.18.0.2", 1, 12), ("198.18.0.3", 4, 11)):
        world.host(ip, dpid, port)
    world.advance(2.5)
    for ip in world.hosts:
        world.say_arp(ip, "198.18.0.9")
    world.deliver()
    return world


def cross(world: World, name: str) -> None:
    """Bring the markers of a link's train back at the link's rate."""
    flight = world.parts.trains._subjects[name].flight
    assert flight is not None
    order, started = flight.order, world.now
    dpid, port = flight.subject.ports[0]
    for index in range(order.every, order.every * order.count + 1, order.every):
        world.now = started + 0.1 + index * FRAME_BYTES * 8 / CAPACITY_BPS
        marker = Probe(
            kind=Kind.ECHO_TRAIN, dpid=dpid, port=port, number=index, sent_at=started, train=flight.number
        )
        world.parts.trains.arrived(world.now, marker)


def measured(others_bps: float) -> World:
    world = world_with_hosts()
    Counting(world, 4, others_bps)
    for _ in range(3):
        world.now += 3.0
        world.mail.clear()
        world.parts.trains.look_after(world.now)
        if world.parts.trains._subjects["198.18.0.3"].flight is not None:
            cross(world, "198.18.0.3")
    return world


def test_a_host_is_measured_by_the_spread_of_its_echoes() -> None:
    world = measured(others_bps=0.0)
    assert world.parts.trains.estimator("198.18.0.3").value_bps == pytest.approx(CAPACITY_BPS, rel=0.02)


def test_a_train_that_met_the_traffic_of_others_tells_nothing() -> None:
    world = measured(others_bps=5e6)
    estimator = world.parts.trains.estimator("198.18.0.3")
    assert estimator.value_bps is None
    assert "beside the train" in estimator.reason
    assert world.parts.trains.counts["train_spoiled"] >= 1


@pytest.mark.parametrize(("stream_bps", "flies"), [(0.02e6, True), (0.5e6, False)])
def test_no_train_goes_beside_even_a_thin_stream_of_a_user(stream_bps: float, flies: bool) -> None:
    world = measured(others_bps=0.0)
    trains, sent = world.parts.trains, world.parts.monitor.sent(4, 11)
    for second in range(4):
        sent.add(world.now + second, 1000.0 + second, int(second * stream_bps / 8))
    flights = []
    for _ in range(10):
        world.now += 3.0
        trains.look_after(world.now)
        flights.append(trains._subjects["198.18.0.3"].flight)
    assert any(flights) is flies


def test_full_trains_of_one_switch_go_one_after_the_other() -> None:
    world = world_with_hosts()
    world.now += 3.0
    world.parts.trains.look_after(world.now)
    flying = [flight.subject.name for flight in world.parts.trains._flights.values()]
    assert len(flying) == 2
    assert "198.18.0.3" in flying


def test_a_train_is_no_use_of_its_link() -> None:
    world = world_with_hosts()
    world.now += 3.0
    world.parts.trains.look_after(world.now)
    cross(world, "198.18.0.3")
    own = world.parts.monitor._ports[4, 11].own
    assert own.tx == own.rx == 24 * FRAME_BYTES


def test_a_host_that_goes_away_takes_its_train_with_it() -> None:
    world = world_with_hosts()
    world.now += 3.0
    world.parts.trains.look_after(world.now)
    world.parts.network.forget_silent(world.now + 100.0, 60.0)
    assert world.parts.trains._flights == {}
    assert world.parts.trains.estimator("198.18.0.3").reason == "the link is not known"


def test_probes_that_wait_behind_a_train_are_no_samples_of_the_delay() -> None:
    world = world_with_hosts()
    world.now += 3.0
    world.parts.trains.look_after(world.now)
    stream = world.parts.prober.host_stream("198.18.0.3")
    assert stream is not None
    before = stream.delay.delay(world.now).samples
    stream.add_delay(world.now + 0.3, 0.9, sent_at=world.now + 0.05)
    assert stream.delay.delay(world.now).samples == before
    stream.add_delay(world.now + 0.3, 0.01, sent_at=world.now + 0.2)
    assert stream.delay.delay(world.now + 0.3).raw == 0.01
