"""The frames of a packet train, and the messages that let a switch send them.

A train is a burst of 1442-byte frames handed to the switch at once; the bottleneck spreads it. Every n-th
frame is a marked one that comes back to the controller, the others are dropped by a rule behind the link,
since a controller cannot take thousands of packets a second. A host's train is made of echo requests.
"""

from __future__ import annotations

from ryu_apps import openflow, packets, probe
from ryu_apps.discovery import Host
from ryu_apps.paths import Hop
from ryu_apps.probe import Kind, Probe
from ryu_apps.probe_frames import host_echo, link_probe
from ryu_apps.train_plan import FRAME_BYTES, Order

PADDING = FRAME_BYTES - 42 - probe.PAYLOAD_BYTES


def departure(what: Host | Hop) -> tuple[int, int]:
    """Return the switch and port that a train leaves from."""
    return what.place if isinstance(what, Host) else (what.src, what.src_port)


def messages(what: Host | Hop, order: Order, *, train: int, sent_at: float, key: bytes) -> bytes:
    """Return the packet-outs of a train: groups of fillers, each with a marked frame at its end."""
    _, port = departure(what)
    filler, groups = _filler(what), []
    for index in range(1, order.count + 1):
        if order.every > 1:
            groups.append(openflow.packet_out(filler, port, copies=order.every - 1))
        marker = _marker(what, train, index * order.every, sent_at=sent_at, key=key)
        groups.append(openflow.packet_out(marker, port))
    return b"".join(groups)


def introduction(host: Host) -> bytes:
    """Let a host learn the fillers' hardware address, so that it does not hold replies back."""
    frame = packets.build_arp(
        operation=packets.ARP_REQUEST,
        sender_mac=probe.VIRTUAL_MAC,
        sender_ip=probe.FILLER_IP,
        target_mac=bytes(6),
        target_ip=packets.ip_bytes(host.ip),
    )
    return openflow.packet_out(frame, host.port)


def _filler(what: Host | Hop) -> bytes:
    if isinstance(what, Host):
        return host_echo(
            what,
            identifier=0,
            number=0,
            payload=bytes(probe.PAYLOAD_BYTES),
            padding=PADDING,
            source=probe.FILLER_IP,
        )
    return packets.build_udp(
        source_mac=probe.VIRTUAL_MAC,
        destination_mac=probe.PROBE_MAC,
        source=probe.VIRTUAL_IP,
        destination=probe.FILLER_IP,
        port=probe.UDP_PORT,
        payload=bytes(probe.PAYLOAD_BYTES + PADDING),
    )


def _marker(what: Host | Hop, train: int, index: int, *, sent_at: float, key: bytes) -> bytes:
    kind = Kind.ECHO_TRAIN if isinstance(what, Host) else Kind.LINK_TRAIN
    dpid, port = departure(what)
    sent = Probe(kind=kind, dpid=dpid, port=port, number=index, sent_at=sent_at, train=train)
    if isinstance(what, Host):
        payload = probe.seal(sent, key)
        return host_echo(what, identifier=train, number=index, payload=payload, padding=PADDING)
    return link_probe(sent, key, padding=PADDING)
