"""Forwarding, ARP and probing on simulated switches."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from ryu_world import KEY, World

from ryu_apps import packets, probe
from ryu_apps.discovery import hop_id
from ryu_apps.probe import Kind, Probe
from ryu_apps.probe_frames import link_probe

H1, H2, H4 = "198.18.1.1", "198.18.1.2", "198.18.1.4"


@pytest.fixture
def world() -> World:
    """Four switches in a ring, discovered, with a host at 1, 2 and 4 each; H1 and H4 have spoken."""
    world = World()
    world.host(H1, 1, 11)
    world.host(H2, 2, 11)
    world.host(H4, 4, 11)
    world.advance(2.0)
    world.say_arp(H1, H4)
    world.deliver()
    world.received.clear()
    return world


def trace(world: World, src: str, dst: str) -> list[int]:
    """Return the switches that the installed rules lead over; fails on a loop."""
    (dpid, in_port), seen = world.hosts[src], []
    packet = packets.parse_ipv4(world.datagram(src, dst, b"trace"))
    while dpid not in seen:
        seen.append(dpid)
        port = world.switches[dpid].output(in_port, packet)
        if (dpid, port) == world.hosts[dst]:
            return seen
        assert port is not None, f"no rule at {dpid} for what comes in at {in_port}"
        dpid, in_port = port, dpid
    raise AssertionError(f"loop over {seen}")


def payloads(world: World, src: str, dst: str) -> list[bytes]:
    """Return what the datagrams that reached a host from another one carried, in order."""
    frames = [frame for ip, frame in world.received if ip == dst]
    arrived = [packets.parse_ipv4(frame) for frame in frames if packets.ethertype(frame) == 0x0800]
    return [packets.udp_payload(packet) for packet in arrived if packet.source == packets.ip_bytes(src)]


def test_probes_show_every_link_in_both_directions_and_its_delay(world: World) -> None:
    assert len([hop_id(hop) for hop in world.parts.network.hops]) == 8
    for hop in world.parts.network.hops:
        stream = world.parts.prober.hop_stream(hop)
        assert stream is not None
        assert stream.delay.delay(world.now).value == pytest.approx(0.005, abs=1e-6)


def test_first_packets_wait_while_a_switch_is_busy_and_none_is_lost_or_sent_twice(world: World) -> None:
    world.switches[1].send_q.waiting = 8
    for number in range(4):
        world.say(H1, H4, bytes([number]))
    world.deliver()
    world.advance(0.5)
    assert payloads(world, H1, H4) == []
    world.switches[1].send_q.waiting = 0
    world.advance(0.5)
    assert payloads(world, H1, H4) == [b"\0", b"\1", b"\2", b"\3"]


def test_an_unknown_address_is_asked_for_at_edge_ports_only_and_then_answered(world: World) -> None:
    assert set(world.parts.network.hosts) == {H1, H4}
    world.say_arp(H1, H2)
    world.deliver()
    assert H2 in world.parts.network.hosts
    answers = [packets.parse_arp(frame) for ip, frame in world.received if ip == H1]
    assert [
        (a.operation, a.sender_ip, a.sender_mac) for a in answers if a.operation == packets.ARP_REPLY
    ] == [(packets.ARP_REPLY, packets.ip_bytes(H2), world.macs[H2])]


def test_an_unknown_address_is_asked_for_twice_a_second_at_most(world: World) -> None:
    for _ in range(20):
        world.say_arp(H1, "198.18.9.9")
        world.deliver()
    asked = [frame for ip, frame in world.received if ip == H4]
    assert len(asked) == 1


def test_the_virtual_addresses_answer(world: World) -> None:
    world.say_arp(H1, packets.ip_text(probe.VIRTUAL_IP))
    world.deliver()
    assert packets.parse_arp(world.received[-1][1]).sender_mac == probe.VIRTUAL_MAC


def test_the_first_packet_arrives_once_and_the_rules_are_in_place(world: World) -> None:
    world.say(H1, H4, b"one")
    world.deliver()
    assert world.datagrams(H4) == [b"one"]
    assert trace(world, H1, H4) == [1, 2, 4]
    assert trace(world, H4, H1) == [4, 2, 1]
    world.say(H1, H4, b"two")
    world.say(H4, H1, b"back")
    world.deliver()
    assert world.datagrams(H4) == [b"two"]


def test_rules_are_installed_from_the_last_switch_to_the_first(world: World) -> None:
    world.say(H1, H4)
    world.deliver()
    assert [dpid for dpid, pair in world.history if pair == (H1, H4)] == [4, 2, 1]


def test_packets_of_a_pair_that_is_being_installed_wait_and_do_not_storm(world: World) -> None:
    for number in range(100):
        world.say(H1, H4, bytes([number]))
    world.deliver()
    installs = [dpid for dpid, pair in world.history if pair == (H1, H4)]
    assert installs == [4, 2, 1]
    got = world.datagrams(H4)
    assert len(got) == len(set(got)) >= 30


def test_a_lost_link_moves_its_routes_at_once(world: World) -> None:
    world.say(H1, H4)
    world.deliver()
    world.cables.discard(frozenset((1, 2)))
    world.parts.network.port_changed(world.now, 1, 2, "x", up=False)
    world.advance(0.1)
    assert trace(world, H1, H4) == [1, 3, 4]
    assert trace(world, H4, H1) == [4, 3, 1]
    world.advance(3.0)
    assert not world.switches[2].has_rule(H1, H4)


def test_a_link_that_goes_silent_is_dropped_within_four_seconds(world: World) -> None:
    world.say(H1, H4)
    world.deliver()
    world.cables.discard(frozenset((1, 2)))
    world.advance(4.0)
    assert trace(world, H1, H4) == [1, 3, 4]


def test_a_route_returns_when_its_better_link_does(world: World) -> None:
    cable = frozenset((2, 4))
    world.parts.network.host_seen(world.now, H2, world.macs[H2], 2, 11)
    world.cables.discard(cable)
    world.advance(4.0)
    world.say(H2, H4)
    world.deliver()
    assert trace(world, H2, H4) == [2, 1, 3, 4]
    world.cables.add(cable)
    world.advance(6.0)
    assert trace(world, H2, H4) == [2, 4]


def test_without_a_way_packets_are_dropped_and_the_way_is_found_later(world: World) -> None:
    cut = [frozenset((1, 2)), frozenset((1, 3))]
    world.cables.difference_update(cut)
    world.advance(4.0)
    world.say(H1, H4, b"lost")
    world.advance(0.1)
    assert world.parts.forwarding.links(H1, H4) is None
    world.cables.update(cut)
    world.advance(3.0)
    world.say(H1, H4, b"found")
    world.deliver()
    assert world.datagrams(H4) == [b"found"]


def test_a_switch_that_comes_back_empty_gets_its_rules_again(world: World) -> None:
    world.say(H1, H4)
    world.deliver()
    world.join(4)
    world.advance(3.0)
    assert trace(world, H1, H4)[-1] == 4
    world.say(H1, H4, b"again")
    world.deliver()
    assert world.datagrams(H4) == [b"hello", b"again"]


def test_a_switch_that_does_not_confirm_does_not_block_the_pair_for_ever(world: World) -> None:
    world.switches[2].answers_barriers = False
    world.say(H1, H4, b"stuck")
    world.advance(2.5)
    world.switches[2].answers_barriers = True
    world.say(H1, H4, b"goes")
    world.deliver()
    assert b"goes" in world.datagrams(H4)


def test_a_host_that_moved_is_found_at_its_new_place(world: World) -> None:
    world.say(H1, H4)
    world.deliver()
    world.host(H4, 3, 12)
    world.say_arp(H4, H1)
    world.advance(2.0)
    world.parts.arp.ask_for_claimed(world.now)
    world.deliver()
    world.advance(0.1)
    world.say(H1, H4, b"there")
    world.deliver()
    assert world.datagrams(H4) == [b"hello", b"there"]
    assert trace(world, H1, H4) == [1, 3]


def test_rules_of_a_lost_host_are_removed_everywhere(world: World) -> None:
    world.say(H1, H4)
    world.deliver()
    world.parts.network.port_changed(world.now, 4, 11, "x", up=False)
    assert all(not switch.rules for switch in world.switches.values())


@pytest.mark.parametrize("seed", range(5))
def test_whatever_fails_and_returns_rules_never_form_a_loop(world: World, seed: int) -> None:
    world.parts.network.host_seen(world.now, H2, world.macs[H2], 2, 11)
    stream = random.Random(seed)
    cables = sorted(world.cables, key=sorted)
    for _ in range(6):
        cable = stream.choice(cables)
        if cable in world.cables and len(world.cables) > 3:
            world.cables.discard(cable)
        else:
            world.cables.add(cable)
        world.advance(4.5, step_s=0.02)
        for src, dst in ((H1, H4), (H4, H2), (H2, H1)):
            world.say(src, dst)
            world.deliver()
            way = trace(world, src, dst)
            assert all(frozenset(step) in world.cables for step in pairwise(way))


def test_garbage_to_the_probe_address_is_counted_and_changes_nothing(world: World) -> None:
    links = set(world.parts.network.hops)
    world.say(H1, packets.ip_text(probe.PROBE_IP), b"not a probe")
    world.say(H1, packets.ip_text(probe.PROBE_IP), bytes(probe.PAYLOAD_BYTES))
    forged = Probe(kind=Kind.LINK, dpid=4, port=12, number=1, sent_at=world.now)
    world.send(H1, link_probe(forged, bytes(32)))
    world.deliver()
    assert world.parts.prober.counts["forged"] == 3
    assert set(world.parts.network.hops) == links


def test_a_host_that_returns_a_probe_makes_no_link(world: World) -> None:
    own = Probe(kind=Kind.LINK, dpid=1, port=11, number=1, sent_at=world.now)
    world.send(H1, link_probe(own, KEY))
    world.deliver()
    assert world.parts.prober.counts["reflected"] == 1


def test_bytes_of_any_kind_from_a_host_never_raise(world: World) -> None:
    stream = random.Random(3)
    for number in range(500):
        start = stream.choice([b"\x08\x00\x45", b"\x08\x06", b"\x86\xdd", b"\x08\x00"])
        frame = stream.randbytes(12) + start + stream.randbytes(stream.randrange(80))
        world.parts.packet_arrived(world.now + number, frame, 1, 11)
        world.parts.packet_arrived(world.now + number, stream.randbytes(stream.randrange(60)), 1, 11)
    assert world.parts.counts()["malformed_packets"] > 100


def test_probes_are_spread_in_time(world: World) -> None:
    sent_before = world.parts.prober.counts["sent"]
    most = 0
    for _ in range(100):
        world.advance(0.01)
        sent = world.parts.prober.counts["sent"]
        most, sent_before = max(most, sent - sent_before), sent
    assert most <= 4
