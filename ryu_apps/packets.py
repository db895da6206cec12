"""Build and read the few packets that the controller handles, with struct: pure.

Hosts send whatever they like: every reader checks lengths and raises MalformedPacketError, never anything
else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address

from ryu_apps.errors import MalformedPacketError

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
PROTOCOL_ICMP = 1
PROTOCOL_UDP = 17
ARP_REQUEST = 1
ARP_REPLY = 2
ICMP_ECHO_REPLY = 0
ICMP_ECHO_REQUEST = 8
BROADCAST_MAC = b"\xff" * 6

_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_ICMP_ECHO = struct.Struct("!BBHHH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arp:
    """An ARP request or reply between IPv4 and Ethernet addresses."""

    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_ip: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipv4:
    """What the controller needs of an IPv4 packet."""

    source_mac: bytes
    source: bytes
    destination: bytes
    protocol: int
    payload: bytes


def mac_bytes(text: str) -> bytes:
    """Return the six bytes of `02:00:..`."""
    return bytes.fromhex(text.replace(":", ""))


def mac_text(address: bytes) -> str:
    """Return `02:00:..` of six bytes."""
    return address.hex(":")


@lru_cache(maxsize=4096)
def ip_bytes(text: str) -> bytes:
    """Return the four bytes of a dotted address."""
    return IPv4Address(text).packed


def ip_text(address: bytes) -> str:
    """Return the dotted form of four bytes."""
    return ".".join(map(str, address))


def ethertype(frame: bytes) -> int:
    """Return the ethertype of a frame."""
    if len(frame) < _ETHERNET.size:
        raise MalformedPacketError(f"a frame of {len(frame)} bytes has no Ethernet header")
    return int.from_bytes(frame[12:14], "big")


def is_unicast_mac(address: bytes) -> bool:
    """Tell whether an Ethernet address can be one host's."""
    return not address[0] & 1 and address != bytes(6)


def is_host_ip(address: bytes) -> bool:
    """Tell whether an IPv4 address can be one host's: not this-network, loopback, multicast or above."""
    return address[0] not in (0, 127) and address[0] < 224


def parse_arp(frame: bytes) -> Arp:
    """Read an ARP packet."""
    if len(frame) < _ETHERNET.size + _ARP.size:
        raise MalformedPacketError(f"an ARP frame of {len(frame)} bytes is too short")
    kind, protocol, mac_length, ip_length, operation, sender_mac, sender_ip, _, target_ip = _ARP.unpack_from(
        frame, _ETHERNET.size
    )
    if (kind, protocol, mac_length, ip_length) != (1, ETHERTYPE_IPV4, 6, 4):
        raise MalformedPacketError("an ARP packet that is not IPv4 over Ethernet")
    return Arp(operation=operation, sender_mac=sender_mac, sender_ip=sender_ip, target_ip=target_ip)


def build_arp(
    *,
    operation: int,
    sender_mac: bytes,
    sender_ip: bytes,
    target_mac: bytes,
    target_ip: bytes,
) -> bytes:
    """Build the frame of an ARP request (broadcast) or reply (to the target)."""
    request = operation == ARP_REQUEST
    destination = BROADCAST_MAC if request else target_mac
    body = _ARP.pack(
        1,
        ETHERTYPE_IPV4,
        6,
        4,
        operation,
        sender_mac,
        sender_ip,
        bytes(6) if request else target_mac,
        target_ip,
    )
    return _ETHERNET.pack(destination, sender_mac, ETHERTYPE_ARP) + body


def parse_ipv4(frame: bytes) -> Ipv4:
    """Read the header of an IPv4 packet; the payload may be cut short by the switch."""
    if len(frame) < _ETHERNET.size + _IPV4.size:
        raise MalformedPacketError(f"an IPv4 frame of {len(frame)} bytes is too short")
    first, _, total, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(
        frame, _ETHERNET.size
    )
    header = (first & 0x0F) * 4
    if first >> 4 != 4 or header < _IPV4.size or total < header or len(frame) < _ETHERNET.size + header:
        raise MalformedPacketError("an IPv4 header whose version or lengths are wrong")
    end = min(len(frame), _ETHERNET.size + total)
    payload = b"" if fragment & 0x1FFF else frame[_ETHERNET.size + header : end]
    return Ipv4(
        source_mac=frame[6:12], source=source, destination=destination, protocol=protocol, payload=payload
    )


def udp_payload(packet: Ipv4) -> bytes:
    """Return what a UDP packet carries."""
    if packet.protocol != PROTOCOL_UDP or len(packet.payload) < _UDP.size:
        raise MalformedPacketError("not a UDP packet")
    return packet.payload[_UDP.size :]


def echo_payload(packet: Ipv4) -> bytes:
    """Return what an ICMP echo reply carries."""
    if packet.protocol != PROTOCOL_ICMP or len(packet.payload) < _ICMP_ECHO.size:
        raise MalformedPacketError("not an ICMP packet")
    if packet.payload[0] != ICMP_ECHO_REPLY:
        raise MalformedPacketError(f"an ICMP packet of type {packet.payload[0]}, not an echo reply")
    return packet.payload[_ICMP_ECHO.size :]


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of `data`."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def build_udp(
    *,
    source_mac: bytes,
    destination_mac: bytes,
    source: bytes,
    destination: bytes,
    port: int,
    payload: bytes,
) -> bytes:
    """Build a UDP frame without a UDP checksum (allowed over IPv4, RFC 768)."""
    datagram = _UDP.pack(port, port, _UDP.size + len(payload), 0) + payload
    return _ethernet_ipv4(source_mac, destination_mac, source, destination, PROTOCOL_UDP, datagram)


def build_echo_request(
    *,
    source_mac: bytes,
    destination_mac: bytes,
    source: bytes,
    destination: bytes,
    identifier: int,
    number: int,
    payload: bytes,
    padding: int = 0,
) -> bytes:
    """Build an ICMP echo request; `padding` zero bytes follow the payload."""
    header = _ICMP_ECHO.pack(ICMP_ECHO_REQUEST, 0, 0, identifier, number & 0xFFFF)
    total = checksum(header + payload)
    header = _ICMP_ECHO.pack(ICMP_ECHO_REQUEST, 0, total, identifier, number & 0xFFFF)
    message = header + payload + bytes(padding)
    return _ethernet_ipv4(source_mac, destination_mac, source, destination, PROTOCOL_ICMP, message)


def _ethernet_ipv4(
    source_mac: bytes, destination_mac: bytes, source: bytes, destination: bytes, protocol: int, body: bytes
) -> bytes:
    total = _IPV4.size + len(body)
    fields = (0x45, 0, total, 0, 0x4000, 64, protocol)
    header = _IPV4.pack(*fields, 0, source, destination)
    header = _IPV4.pack(*fields, checksum(header), source, destination)
    return _ETHERNET.pack(destination_mac, source_mac, ETHERTYPE_IPV4) + header + body
