"""Build the frames that carry probes: pure."""

from __future__ import annotations

from ryu_apps import packets, probe
from ryu_apps.discovery import Host
from ryu_apps.probe import Probe


def link_probe(sent: Probe, key: bytes, *, padding: int = 0) -> bytes:
    """Build the frame of a probe between switches."""
    return packets.build_udp(
        source_mac=probe.VIRTUAL_MAC,
        destination_mac=probe.PROBE_MAC,
        source=probe.VIRTUAL_IP,
        destination=probe.PROBE_IP,
        port=probe.UDP_PORT,
        payload=probe.seal(sent, key) + bytes(padding),
    )


def host_echo(
    host: Host,
    *,
    identifier: int,
    number: int,
    payload: bytes,
    padding: int = 0,
    source: bytes = probe.VIRTUAL_IP,
) -> bytes:
    """Build the frame of an echo request to a host."""
    return packets.build_echo_request(
        source_mac=probe.VIRTUAL_MAC,
        destination_mac=host.mac,
        source=source,
        destination=packets.ip_bytes(host.ip),
        identifier=identifier,
        number=number,
        payload=payload,
        padding=padding,
    )
