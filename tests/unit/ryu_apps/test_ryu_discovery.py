"""What the controller concludes from what it sees: switches, links, hosts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from ryu_apps.discovery import (
    ALIVE_S,
    FLAPS,
    HELD_S,
    HOLD_DOWN_S,
    MAX_CLAIMS,
    SETTLE_S,
    Network,
    Port,
    Switch,
    from_host_id,
    hop_id,
    to_host_id,
)
from ryu_apps.paths import Hop
from ryu_apps.signals import Change, Signals

MAC = b"\x02\0\0\0\0\x11"
IP = "198.18.1.1"


@dataclass(eq=False)
class Connection:
    """Stands for a switch's connection: its identity counts, and when it was heard."""

    id: int
    heard_at: float = 0.0
    address: tuple[str, int] = ("192.0.2.1", 40000)


@dataclass
class World:
    """A network of two switches with three ports each, and what it told."""

    signals: Signals = field(default_factory=Signals)
    told: list[tuple[Change, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = Network(self.signals)
        for change in Change:
            self.signals.connect(change, lambda payload, change=change: self.told.append((change, payload)))

    def join(self, now: float, dpid: int) -> Connection:
        connection = Connection(dpid)
        ports = {
            number: Port(number=number, name=f"s{dpid}.{number}", up=True, since=now) for number in (1, 2, 3)
        }
        self.network.switch_joined(
            now, Switch(dpid=dpid, name=f"s{dpid}", datapath=connection, connected_since=now, ports=ports)
        )
        return connection

    def changes(self) -> list[Change]:
        return [change for change, _ in self.told]


@pytest.fixture
def world() -> World:
    world = World()
    world.join(0.0, 1)
    world.join(0.0, 2)
    world.told.clear()
    return world


HOP = Hop(src=1, src_port=1, dst=2, dst_port=1)


def test_a_probe_that_crossed_shows_the_link_once(world: World) -> None:
    assert world.network.probe_arrived(1.0, HOP)
    assert world.network.probe_arrived(1.1, HOP)
    assert world.changes() == [Change.LINK_UP]
    assert hop_id(HOP) == "0000000000000001.1-0000000000000002.1"


def test_a_link_vanishes_with_either_of_its_ports(world: World) -> None:
    for dpid in (1, 2):
        world.network.probe_arrived(1.0, HOP)
        world.network.port_changed(2.0, dpid, 1, "x", up=False)
        assert list(world.network.hops) == []
        world.network.port_changed(3.0, dpid, 1, "x", up=True)


def test_a_probe_from_before_a_port_went_down_does_not_bring_the_link_back(world: World) -> None:
    world.network.port_changed(2.0, 1, 1, "x", up=False)
    assert not world.network.probe_arrived(2.1, HOP)


def test_a_cable_that_moved_replaces_the_link_once_the_old_one_is_silent(world: World) -> None:
    other = Hop(src=1, src_port=1, dst=2, dst_port=3)
    world.network.probe_arrived(1.0, HOP)
    assert not world.network.probe_arrived(1.5, other)
    assert world.network.probe_arrived(2.5, other)
    assert list(world.network.hops) == [other]


def test_hosts_are_learned_at_settled_edge_ports_only(world: World) -> None:
    world.network.probe_arrived(0.5, HOP)
    assert world.network.host_seen(0.5, IP, MAC, 1, 2) is None
    assert world.network.host_seen(SETTLE_S + 0.1, IP, MAC, 1, 1) is None
    assert world.network.host_seen(SETTLE_S + 0.1, IP, MAC, 2, 1) is None
    assert world.network.host_seen(SETTLE_S + 0.1, IP, MAC, 9, 1) is None
    host = world.network.host_seen(SETTLE_S + 0.1, IP, MAC, 1, 2)
    assert host is not None
    assert (from_host_id(host), to_host_id(host)) == (
        "198.18.1.1-0000000000000001.2",
        "0000000000000001.2-198.18.1.1",
    )


def test_a_host_learned_where_a_link_turns_out_to_be_is_forgotten(world: World) -> None:
    world.network.host_seen(5.0, IP, MAC, 1, 1)
    world.network.probe_arrived(6.0, HOP)
    assert world.network.hosts == {}
    assert world.changes() == [Change.HOST_LEARNED, Change.HOST_LOST, Change.LINK_UP]


def test_a_host_that_moves_is_relearned(world: World) -> None:
    world.network.host_seen(5.0, IP, MAC, 1, 2)
    host = world.network.host_seen(5.0 + HELD_S, IP, MAC, 2, 3)
    assert host is not None
    assert host.place == (2, 3)
    assert world.changes() == [Change.HOST_LEARNED, Change.HOST_MOVED]


def test_hosts_go_with_their_port_and_are_remembered_for_asking(world: World) -> None:
    world.network.host_seen(5.0, IP, MAC, 1, 2)
    world.network.port_changed(6.0, 1, 2, "x", up=False)
    assert world.network.hosts == {}
    assert list(world.network.lost_hosts) == [IP]


def test_hosts_survive_a_switch_that_reconnects_in_time(world: World) -> None:
    world.network.host_seen(5.0, IP, MAC, 1, 2)
    connection = world.network.switches[1].datapath
    world.network.switch_left(6.0, connection)
    world.network.forget_silent(10.0, 60.0)
    world.join(11.0, 1)
    assert list(world.network.hosts) == [IP]


def test_hosts_of_a_switch_that_stays_away_are_lost(world: World) -> None:
    world.network.host_seen(5.0, IP, MAC, 1, 2)
    world.network.switch_left(6.0, world.network.switches[1].datapath)
    world.network.forget_silent(30.0, 60.0)
    assert world.network.hosts == {}


def test_a_silent_host_is_lost(world: World) -> None:
    world.network.host_seen(5.0, IP, MAC, 1, 2)
    world.network.forget_silent(64.0, 60.0)
    assert list(world.network.hosts) == [IP]
    world.network.forget_silent(66.0, 60.0)
    assert world.network.hosts == {}


def test_the_end_of_an_old_connection_does_not_take_down_the_new_one(world: World) -> None:
    old = world.network.switches[1].datapath
    new = world.join(ALIVE_S, 1)
    world.network.switch_left(ALIVE_S + 0.1, old)
    assert world.network.switches[1].datapath is new


def test_of_two_switches_with_one_id_the_first_stays_while_it_is_alive(world: World) -> None:
    first = world.network.switches[1].datapath
    world.network.probe_arrived(1.0, HOP)
    first.heard_at = 10.0
    second = world.join(10.0 + ALIVE_S - 0.1, 1)
    assert world.network.switches[1].datapath is first
    assert world.changes() == [Change.LINK_UP, Change.SWITCH_REFUSED]
    world.network.switch_left(13.0, second)
    assert world.network.switches[1].datapath is first
    assert world.network.has_hop(HOP)


def test_a_switch_that_was_refused_is_taken_in_once_the_first_is_silent_or_gone(world: World) -> None:
    first = world.network.switches[1].datapath
    first.heard_at = 10.0
    assert world.join(10.0 + ALIVE_S, 1) is world.network.switches[1].datapath
    world.network.switch_left(20.0, world.network.switches[1].datapath)
    assert world.join(20.1, 1) is world.network.switches[1].datapath


def test_a_switch_takes_its_links_along(world: World) -> None:
    world.network.probe_arrived(1.0, HOP)
    world.network.switch_left(2.0, world.network.switches[2].datapath)
    assert list(world.network.hops) == []
    assert Change.LINK_DOWN in world.changes()
    assert world.changes()[-1] == Change.SWITCH_DOWN


def test_one_port_cannot_fill_the_memory_with_hosts(world: World) -> None:
    for number in range(400):
        world.network.host_seen(5.0, f"198.18.{number // 200}.{number % 200 + 1}", MAC, 1, 2)
    assert len(world.network.hosts) == 256


def test_an_address_that_two_ports_claim_stays_with_the_first_while_that_is_heard(world: World) -> None:
    host = world.network.host_seen(5.0, IP, MAC, 1, 2)
    assert host is not None
    for step in range(100):
        now = 5.1 + step * 0.1
        world.network.host_answered(now, host)
        assert world.network.host_seen(now, IP, b"\x02\0\0\0\0\x66", 2, 3) is None
    assert (host.mac, host.place) == (MAC, (1, 2))
    assert world.changes() == [Change.HOST_LEARNED, Change.HOST_CONFLICT]
    assert world.network.counts["conflicts"] == 100


def test_a_claim_is_followed_up_once_the_host_is_silent_and_only_for_a_while(world: World) -> None:
    world.network.host_seen(5.0, IP, MAC, 1, 2)
    world.network.host_seen(6.0, IP, MAC, 2, 3)
    assert list(world.network.open_claims(6.1)) == []
    assert [(ip, claim.dpid, claim.port) for ip, claim in world.network.open_claims(7.0)] == [(IP, 2, 3)]
    assert list(world.network.open_claims(30.0)) == []
    assert world.network.claims == {}


def test_claims_to_many_addresses_fill_no_memory(world: World) -> None:
    for number in range(250):
        world.network.host_seen(5.0, f"198.18.1.{number}", MAC, 1, 2)
        world.network.host_seen(5.0, f"198.18.2.{number}", MAC, 1, 3)
    for place in ((2, 2), (2, 3)):
        for number in range(250):
            for net in (1, 2):
                world.network.host_seen(5.5, f"198.18.{net}.{number}", MAC, *place)
    assert len(world.network.claims) == MAX_CLAIMS


def test_no_link_begins_or_ends_where_a_host_answers(world: World) -> None:
    host = world.network.host_seen(5.0, IP, MAC, 1, 1)
    assert host is not None
    world.network.host_answered(6.0, host)
    assert not world.network.probe_arrived(6.1, HOP)
    assert not world.network.probe_arrived(6.1, Hop(src=2, src_port=1, dst=1, dst_port=1))
    assert world.network.hosts == {IP: host}
    assert world.network.probe_arrived(6.0 + ALIVE_S, HOP)


def test_a_port_that_was_unplugged_forgets_its_host(world: World) -> None:
    host = world.network.host_seen(5.0, IP, MAC, 1, 1)
    assert host is not None
    world.network.host_answered(6.0, host)
    for up in (False, True):
        world.network.port_changed(6.1, 1, 1, "x", up=up)
    assert world.network.probe_arrived(6.2, HOP)


def test_a_link_that_flaps_comes_back_once_it_has_stayed_whole(world: World) -> None:
    now = 1.0
    for _ in range(50):
        world.network.port_changed(now, 1, 1, "x", up=False)
        world.network.port_changed(now + 0.05, 1, 1, "x", up=True)
        world.network.probe_arrived(now + 0.06, HOP)
        now += 0.1
    assert world.changes().count(Change.LINK_UP) == FLAPS
    assert not world.network.probe_arrived(now + HOLD_DOWN_S - 0.2, HOP)
    assert world.network.probe_arrived(now + HOLD_DOWN_S, HOP)
    assert world.network.probe_arrived(now + 60.0, HOP)


def test_a_link_that_fails_now_and_then_comes_back_at_once(world: World) -> None:
    for number in range(10):
        now = 1.0 + number * 6.0
        world.network.probe_arrived(now, HOP)
        world.network.port_changed(now + 1, 1, 1, "x", up=False)
        world.network.port_changed(now + 2, 1, 1, "x", up=True)
        assert world.network.probe_arrived(now + 2.1, HOP)
