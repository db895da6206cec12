"""What hosts and switches may send: nothing of it changes what the controller knows of others."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from ryu_world import KEY, FakeSwitch, World

from ryu_apps import packets, probe
from ryu_apps.discovery import Port, Switch
from ryu_apps.limits import PortLimits
from ryu_apps.paths import Hop
from ryu_apps.probe_frames import link_probe

H1, H4 = "198.18.1.1", "198.18.1.4"
ROGUE = "198.18.1.66"


@pytest.fixture
def world() -> World:
    """Return a ring whose hosts at switches 1 and 4 are known and have been measured for a while."""
    world = World()
    world.host(H1, 1, 11)
    world.host(H4, 4, 11)
    world.advance(2.0)
    world.say_arp(H1, H4)
    world.say_arp(H4, H1)
    world.advance(3.0)
    return world


def delay_s(world: World, ip: str) -> float | None:
    stream = world.parts.prober.host_stream(ip)
    assert stream is not None
    return stream.delay.delay(world.now).value


def known(world: World) -> tuple[set[Hop], dict[str, tuple[int, int]]]:
    network = world.parts.network
    return set(network.hops), {ip: host.place for ip, host in network.hosts.items()}


def echo_replies(world: World, ip: str) -> list[bytes]:
    """Return the genuine answers of a host to the echo requests it received."""
    found = []
    for at, frame in world.received:
        if at == ip and frame[26:30] == probe.VIRTUAL_IP and frame[23] == packets.PROTOCOL_ICMP:
            reply = bytearray(frame)
            reply[26:30], reply[30:34], reply[34] = frame[30:34], frame[26:30], 0
            found.append(bytes(reply))
    return found


def counts(world: World, name: str) -> float:
    return world.parts.counts().get(name, 0)


def test_an_answer_that_comes_twice_or_much_later_counts_once(world: World) -> None:
    before, replies = delay_s(world, H1), echo_replies(world, H1)
    assert len(replies) > 10
    for moment in (0.0, 5.0, 60.0):
        for reply in replies:
            world.parts.packet_arrived(world.now + moment, reply, 1, 11)
    assert counts(world, "probes_replayed") == 3 * len(replies)
    assert delay_s(world, H1) == before


def test_an_answer_at_another_port_is_misplaced(world: World) -> None:
    state, before = known(world), delay_s(world, H1)
    replies = echo_replies(world, H1)
    for place in ((1, 12), (4, 11), (4, 12), (2, 1)):
        for reply in replies[-5:]:
            world.parts.packet_arrived(world.now, reply, *place)
    assert counts(world, "probes_misplaced") == 20
    assert (known(world), delay_s(world, H1)) == (state, before)


def test_an_answer_with_another_number_is_forged(world: World) -> None:
    reply = bytearray(echo_replies(world, H1)[-1])
    forged = counts(world, "probes_forged")
    for position in range(42, 42 + probe.PAYLOAD_BYTES):
        reply[position] ^= 1
        world.parts.packet_arrived(world.now, bytes(reply), 1, 11)
        reply[position] ^= 1
    assert counts(world, "probes_forged") - forged == probe.PAYLOAD_BYTES


def test_no_link_probe_goes_to_a_port_where_a_host_answers(world: World) -> None:
    world.received.clear()
    world.advance(5.0)
    frames = [frame for ip, frame in world.received if ip == H1]
    assert frames
    assert not any(frame[30:34] == probe.PROBE_IP for frame in frames)


def test_a_link_probe_that_a_host_kept_shows_no_link_anywhere() -> None:
    world = World()
    world.host(H1, 1, 11)
    world.advance(2.0)
    kept = [frame for ip, frame in world.received if ip == H1 and frame[30:34] == probe.PROBE_IP]
    assert kept
    world.advance(2.5)
    state = known(world)
    for place in ((4, 12), (2, 11), (1, 12), (1, 11)):
        for frame in kept:
            world.parts.packet_arrived(world.now, frame, *place)
    assert known(world) == state


def test_a_link_probe_that_is_relayed_at_once_to_a_host_that_answers_shows_no_link(world: World) -> None:
    state = known(world)
    stream = world.parts.prober._ports[1, 12]
    number = next(stream.numbers)
    stream.loss.sent(world.now, number)
    sent = probe.Probe(kind=probe.Kind.LINK, dpid=1, port=12, number=number, sent_at=world.now)
    world.parts.packet_arrived(world.now, link_probe(sent, KEY), 4, 11)
    assert known(world) == state
    assert counts(world, "probes_implausible") == 1


def test_a_link_probe_that_comes_twice_gives_one_sample(world: World) -> None:
    stream = world.parts.prober._ports[1, 2]
    number = next(stream.numbers)
    stream.loss.sent(world.now, number)
    sent = probe.Probe(kind=probe.Kind.LINK, dpid=1, port=2, number=number, sent_at=world.now)
    for _ in range(10):
        world.parts.packet_arrived(world.now, link_probe(sent, KEY), 2, 1)
    assert counts(world, "probes_replayed") == 9


def test_who_claims_a_hosts_address_while_it_answers_gets_nothing(world: World) -> None:
    state = known(world)
    world.hosts[ROGUE], world.macs[ROGUE] = (4, 12), b"\x02\0\0\0\0\x66"
    for _ in range(20):
        poison = packets.build_arp(
            operation=packets.ARP_REPLY,
            sender_mac=world.macs[ROGUE],
            sender_ip=packets.ip_bytes(H1),
            target_mac=packets.BROADCAST_MAC,
            target_ip=packets.ip_bytes(H1),
        )
        world.send(ROGUE, poison)
        world.advance(0.1)
    assert known(world) == state
    assert world.parts.network.hosts[H1].mac == world.macs[H1]
    assert counts(world, "network_conflicts") == 20


def test_a_flood_of_one_port_is_dropped_early_and_hurts_nobody_else(world: World) -> None:
    flood = packets.build_arp(
        operation=packets.ARP_REQUEST,
        sender_mac=b"\x02\0\0\0\0\x66",
        sender_ip=packets.ip_bytes(ROGUE),
        target_mac=bytes(6),
        target_ip=packets.ip_bytes(H1),
    )
    started = counts(world, "arp_packets")
    for _ in range(100):
        for _ in range(100):
            world.parts.packet_arrived(world.now, flood, 1, 12)
        world.mail.clear()
        world.advance(0.01)
    assert counts(world, "arp_packets") - started <= PortLimits.HOST_BURST + PortLimits.HOST_RATE + 10
    assert counts(world, "flooded_packets") > 9000
    assert counts(world, "flooded_measuring") == 0
    assert delay_s(world, H1) is not None


def test_measuring_packets_of_a_port_are_bounded_too(world: World) -> None:
    reply = echo_replies(world, H1)[-1]
    for _ in range(5000):
        world.parts.packet_arrived(world.now, reply, 1, 12)
    assert counts(world, "probes_misplaced") <= 800
    assert counts(world, "flooded_measuring") >= 4200


def test_whatever_bytes_come_nothing_changes_and_nothing_fails(world: World) -> None:
    random_bytes = random.Random(7)
    world.say_arp(H1, H4)
    genuine = [frame for _, frame in world.received[-40:]] + echo_replies(world, H1)[-3:]
    state, before = known(world), delay_s(world, H1)
    for frame in genuine:
        for length in range(len(frame)):
            world.parts.packet_arrived(world.now, frame[:length], 4, 12)
    for turn in range(3000):
        frame = bytearray(random_bytes.choice(genuine))
        for _ in range(random_bytes.randrange(1, 6)):
            frame[random_bytes.randrange(12, len(frame))] = random_bytes.randrange(256)
        if turn % 5 == 0:
            world.advance(0.02)
        world.parts.packet_arrived(world.now, bytes(frame) + bytes(random_bytes.choice((0, 9000))), 4, 12)
    hops, hosts = known(world)
    assert hops == state[0]
    assert {ip: hosts[ip] for ip in state[1]} == state[1]
    assert delay_s(world, H1) == pytest.approx(before)


def test_a_second_switch_with_the_same_id_is_turned_away_and_changes_nothing(world: World) -> None:
    state, first = known(world), world.switches[4]
    first.heard_at = world.now
    impostor = FakeSwitch(id=4, world=world)
    ports = {1: Port(number=1, name="x", up=True, since=world.now)}
    world.parts.switch_connected(
        world.now, Switch(dpid=4, name="x", datapath=impostor, connected_since=world.now, ports=ports)
    )
    assert impostor.closed
    assert not first.closed
    assert impostor.rules == {}
    assert known(world) == state
    assert counts(world, "connections_refused_switches") == 1
    world.parts.network.switch_left(world.now, impostor)
    assert known(world) == state


def test_a_switch_whose_old_connection_is_silent_takes_its_place(world: World) -> None:
    first = world.switches[4]
    first.heard_at = world.now - 10
    world.join(4)
    assert first.closed
    assert world.parts.network.switches[4].datapath is world.switches[4]
    assert counts(world, "connections_replaced_switches") == 1


def test_counters_that_never_come_make_values_unknown_with_a_reason(world: World) -> None:
    counters = world.parts.monitor
    entry = SimpleNamespace(
        port_no=2,
        duration_sec=100,
        duration_nsec=0,
        **{f"{way}_{what}": 0 for way in ("tx", "rx") for what in ("bytes", "packets", "dropped", "errors")},
    )
    for second in range(3):
        entry.duration_sec = 100 + second
        counters.poll(world.parts.network.switches[1])
        counters.replied(world.now + second, 1, world.switches[1].polls[-1], [entry])
    assert counters.sent(1, 2).rate(world.now + 3).value == 0
    stale = counters.sent(1, 2).rate(world.now + 30)
    assert stale.value is None
    assert "no counter reply for 28 s" in (stale.reason or "")
