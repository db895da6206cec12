"""Packets and probes: what is built reads back, what hosts make up raises one kind of error."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps import packets, probe
from ryu_apps.errors import ForgedProbeError, MalformedPacketError
from ryu_apps.probe import Kind, Probe

KEY = bytes(range(32))
HOST_MAC = packets.mac_bytes("02:00:00:00:00:11")
SENT = Probe(kind=Kind.ECHO, dpid=0xC1, port=3, number=7, sent_at=1.5, train=9)


def echo_request(padding: int = 0) -> bytes:
    return packets.build_echo_request(
        source_mac=probe.VIRTUAL_MAC,
        destination_mac=HOST_MAC,
        source=probe.VIRTUAL_IP,
        destination=packets.ip_bytes("198.18.1.1"),
        identifier=5,
        number=7,
        payload=probe.seal(SENT, KEY),
        padding=padding,
    )


def test_addresses_read_back_as_written() -> None:
    assert packets.ip_text(packets.ip_bytes("198.18.0.1")) == "198.18.0.1"
    assert packets.mac_text(packets.mac_bytes("02:00:c6:12:00:01")) == "02:00:c6:12:00:01"


@pytest.mark.parametrize("padding", [0, 1, 1344])
def test_an_echo_request_has_right_checksums(padding: int) -> None:
    frame = echo_request(padding)
    assert packets.checksum(frame[14:34]) == 0
    assert packets.checksum(frame[34:]) == 0
    assert int.from_bytes(frame[16:18], "big") == len(frame) - 14


def test_an_echo_reply_carries_the_probe_back() -> None:
    frame = bytearray(echo_request(padding=500))
    frame[34] = packets.ICMP_ECHO_REPLY
    packet = packets.parse_ipv4(bytes(frame[:128]))
    assert probe.unseal(packets.echo_payload(packet), KEY) == SENT


def test_a_link_probe_reads_back() -> None:
    frame = packets.build_udp(
        source_mac=probe.VIRTUAL_MAC,
        destination_mac=probe.PROBE_MAC,
        source=probe.VIRTUAL_IP,
        destination=probe.PROBE_IP,
        port=probe.UDP_PORT,
        payload=probe.seal(SENT, KEY),
    )
    packet = packets.parse_ipv4(frame)
    assert packet.destination == probe.PROBE_IP
    assert probe.unseal(packets.udp_payload(packet), KEY) == SENT


def test_arp_reads_back() -> None:
    frame = packets.build_arp(
        operation=packets.ARP_REPLY,
        sender_mac=HOST_MAC,
        sender_ip=packets.ip_bytes("198.18.1.1"),
        target_mac=probe.VIRTUAL_MAC,
        target_ip=probe.VIRTUAL_IP,
    )
    packet = packets.parse_arp(frame)
    assert packets.ethertype(frame) == packets.ETHERTYPE_ARP
    assert (packet.operation, packet.sender_mac, packet.target_ip) == (2, HOST_MAC, probe.VIRTUAL_IP)


@given(st.integers(0, probe.PAYLOAD_BYTES - 1), st.integers(1, 255))
def test_a_probe_with_any_byte_changed_is_refused(place: int, change: int) -> None:
    payload = bytearray(probe.seal(SENT, KEY))
    payload[place] ^= change
    with pytest.raises(ForgedProbeError):
        probe.unseal(bytes(payload), KEY)


def test_a_probe_of_another_controller_is_refused() -> None:
    with pytest.raises(ForgedProbeError, match="code is wrong"):
        probe.unseal(probe.seal(SENT, KEY), bytes(32))


def test_a_probe_that_is_cut_short_is_refused() -> None:
    with pytest.raises(ForgedProbeError, match="are no probe"):
        probe.unseal(probe.seal(SENT, KEY)[:-1], KEY)


@given(
    st.builds(
        Probe,
        kind=st.sampled_from(Kind),
        dpid=st.integers(0, 2**64 - 1),
        port=st.integers(0, 2**32 - 1),
        number=st.integers(0, 2**32 - 1),
        sent_at=st.floats(0, 4e9),
        train=st.integers(0, 0xFFFF),
    )
)
def test_every_probe_reads_back_as_sent(sent: Probe) -> None:
    assert probe.unseal(probe.seal(sent, KEY) + b"padding", KEY) == sent
    assert dataclasses.asdict(sent)["dpid"] == sent.dpid


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x08\x00\x45", b"\x08\x06", b"\x08\x00\x4f"]))
def test_garbage_raises_nothing_but_the_one_error(body: bytes, start: bytes) -> None:
    frame = bytes(12) + start + body
    for read in (
        packets.ethertype,
        packets.parse_arp,
        lambda data: packets.udp_payload(packets.parse_ipv4(data)),
        lambda data: packets.echo_payload(packets.parse_ipv4(data)),
    ):
        with contextlib.suppress(MalformedPacketError):
            read(frame)
        with contextlib.suppress(MalformedPacketError):
            read(body)


def test_a_later_fragment_has_no_payload_to_read() -> None:
    frame = bytearray(echo_request())
    frame[20:22] = (185).to_bytes(2, "big")
    assert packets.parse_ipv4(bytes(frame)).payload == b""


def test_addresses_that_no_host_has_are_told_apart() -> None:
    for text in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"):
        assert not packets.is_host_ip(packets.ip_bytes(text))
    assert packets.is_host_ip(packets.ip_bytes("198.18.1.1"))
    assert not packets.is_unicast_mac(packets.BROADCAST_MAC)
    assert not packets.is_unicast_mac(bytes(6))
