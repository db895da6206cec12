"""What happens to the rules on switches, and to traffic over them, when controller or switch come anew."""

from __future__ import annotations

import pytest
from ryu.ofproto import ofproto_v1_3_parser
from ryu_world import World

from ryu_apps import openflow, packets
from ryu_apps.takeover import GRACE_S, LIST_TIMEOUT_S

H1, H2, H4 = "198.18.1.1", "198.18.1.2", "198.18.1.4"
OTHER_KEY = bytes(range(100, 132))


@pytest.fixture
def world() -> World:
    """Return a ring over which H1 and H4 talk."""
    world = World()
    world.host(H1, 1, 11)
    world.host(H4, 4, 11)
    world.advance(2.0)
    for src, dst in ((H1, H4), (H4, H1)):
        world.say_arp(src, dst)
        world.deliver()
        world.say(src, dst)
        world.deliver()
    world.received.clear()
    return world


def flows(world: World, src: str = H1, dst: str = H4) -> bool:
    """Tell whether the rules on the switches alone bring a packet from one host to another."""
    (dpid, in_port), packet = world.hosts[src], packets.parse_ipv4(world.datagram(src, dst, b"x"))
    for _ in range(6):
        port = world.switches[dpid].output(in_port, packet)
        if port is None or (dpid, port) == world.hosts[dst]:
            return port is not None
        dpid, in_port = port, dpid
    return False


def cookies(world: World) -> set[int]:
    return {rule.cookie for switch in world.switches.values() for rule in switch.table.values()}


def advance_while_it_flows(world: World, seconds: float) -> None:
    for _ in range(int(seconds * 10)):
        world.advance(0.1)
        assert flows(world)
        assert flows(world, H4, H1)


def test_traffic_flows_on_while_a_new_controller_takes_over(world: World) -> None:
    old = {cookie for cookie in cookies(world) if openflow.is_pair(cookie)}
    world.restart(OTHER_KEY)
    advance_while_it_flows(world, GRACE_S + 3)
    assert sorted(world.parts.network.hosts) == [H1, H4]
    assert not old & cookies(world)
    assert world.parts.forwarding.links(H1, H4) is not None


def test_hosts_that_say_nothing_are_found_within_seconds(world: World) -> None:
    world.restart(OTHER_KEY)
    assert world.parts.network.hosts == {}
    world.advance(3.0)
    assert {ip: host.place for ip, host in world.parts.network.hosts.items()} == world.hosts


def test_measured_values_come_back_and_old_probes_count_for_nothing(world: World) -> None:
    world.received.clear()
    world.advance(0.5)
    old = [(ip, frame) for ip, frame in world.received if frame[23] == packets.PROTOCOL_ICMP]
    assert old
    world.restart(OTHER_KEY)
    for ip, frame in old:
        reply = bytearray(frame)
        reply[26:30], reply[30:34], reply[34] = frame[30:34], frame[26:30], 0
        world.parts.packet_arrived(world.now, bytes(reply), *world.hosts[ip])
    assert world.parts.counts()["probes_forged"] == len(old)
    world.advance(5.0)
    for ip in (H1, H4):
        stream = world.parts.prober.host_stream(ip)
        assert stream is not None
        assert stream.delay.delay(world.now).value == pytest.approx(0.003, abs=0.003)


def test_rules_of_hosts_that_are_gone_are_removed_after_a_while(world: World) -> None:
    world.restart(OTHER_KEY)
    del world.hosts[H4]
    world.advance(GRACE_S - 1)
    assert any(switch.has_rule(H1, H4) for switch in world.switches.values())
    world.advance(3.0)
    assert not any(switch.has_rule(H1, H4) for switch in world.switches.values())
    base = len(openflow.base_rules(world.switches[1]))
    assert [len(switch.table) for switch in world.switches.values()] == [base] * 4


def test_rules_of_others_are_removed_at_once_and_those_for_measuring_stay(world: World) -> None:
    switch = world.switches[1]
    foreign = ofproto_v1_3_parser.OFPFlowMod(
        datapath=switch,
        cookie=0,
        priority=7,
        match=ofproto_v1_3_parser.OFPMatch(eth_type=0x86DD),
        instructions=[],
    )
    switch.send_msg(foreign)
    old = ofproto_v1_3_parser.OFPFlowMod(
        datapath=switch,
        cookie=openflow.COOKIE_CONTROL,
        priority=8,
        match=ofproto_v1_3_parser.OFPMatch(eth_type=0x88CC),
        instructions=[],
    )
    switch.send_msg(old)
    world.restart(OTHER_KEY)
    world.deliver()
    priorities = {rule.priority for rule in world.switches[1].table.values()}
    assert 7 not in priorities
    world.switches[1].send_msg(foreign)  # a second controller, at work beside this one
    world.advance(GRACE_S + 1)
    wanted = {(rule.priority, frozenset(rule.match.items())) for rule in openflow.base_rules(switch)}
    assert wanted <= set(world.switches[1].table)
    later = {rule.priority for rule in world.switches[1].table.values()}
    assert (7 in later, 8 in later) == (True, False)


def test_a_switch_that_lost_its_connection_keeps_its_traffic(world: World) -> None:
    for dpid in (1, 4):
        world.parts.network.switch_left(world.now, world.switches[dpid])
        assert flows(world)
        world.join(dpid, keep_rules=True)
        advance_while_it_flows(world, 3.0)


def test_a_switch_that_lost_its_rules_gets_them_back(world: World) -> None:
    world.parts.network.switch_left(world.now, world.switches[1])
    world.join(1)
    assert not flows(world)
    world.advance(3.0)
    assert flows(world)
    assert flows(world, H4, H1)


def test_a_switch_that_does_not_list_its_rules_is_emptied_and_filled_again(world: World) -> None:
    world.parts.network.switch_left(world.now, world.switches[1])
    world.join(1, keep_rules=True)
    world.mail.clear()
    world.switches[1].lists_rules = False
    world.advance(LIST_TIMEOUT_S + 1)
    assert world.parts.counts()["takeover_emptied_switches"] == 1
    world.advance(2.0)
    assert flows(world)
    base = {(rule.priority, frozenset(rule.match.items())) for rule in openflow.base_rules(world.switches[1])}
    assert base <= set(world.switches[1].table)
