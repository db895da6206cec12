"""The authenticated payload of a measuring packet, and the addresses that such packets use: pure.

Every probe carries where and when it was sent, its number, and a code made with a key that only this process
knows; a host cannot make one up, and a reply cannot come before its request.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

from ryu_apps.errors import ForgedProbeError
from ryu_apps.packets import ip_bytes, mac_bytes

PROBE_IP = ip_bytes("198.19.255.253")
VIRTUAL_IP = ip_bytes("198.19.255.254")
FILLER_IP = ip_bytes("198.19.255.252")
VIRTUAL_MAC = mac_bytes("02:75:74:6f:70:00")
PROBE_MAC = mac_bytes("02:75:74:6f:70:01")
"""Never the source of a frame, so that no bridge on the way learns it."""
UDP_PORT = 50550

_BODY = struct.Struct("!4sBBHQIId")
_TAG_BYTES = 16
PAYLOAD_BYTES = _BODY.size + _TAG_BYTES
_MAGIC = b"UTO1"
KEY_BYTES = 32


class Kind(IntEnum):
    """What a probe is for."""

    LINK = 1
    ECHO = 2
    LINK_TRAIN = 3
    ECHO_TRAIN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe, sent out of `port` of switch `dpid` at Unix time `sent_at`; `train` numbers trains."""

    kind: Kind
    dpid: int
    port: int
    number: int
    sent_at: float
    train: int = 0


def seal(probe: Probe, key: bytes) -> bytes:
    """Return the payload that carries `probe`."""
    body = _BODY.pack(
        _MAGIC, 1, probe.kind, probe.train & 0xFFFF, probe.dpid, probe.port, probe.number, probe.sent_at
    )
    return body + _code(body, key)


def _code(body: bytes, key: bytes) -> bytes:
    """Return the authentication code: keyed BLAKE2s (RFC 7693), ten times as fast as HMAC on so few bytes."""
    return hashlib.blake2s(body, key=key, digest_size=_TAG_BYTES).digest()


def unseal(payload: bytes, key: bytes) -> Probe:
    """Read a payload that `seal` made; what follows it is padding.

    Raises:
        ForgedProbeError: too short, of another make, or with a wrong code.
    """
    if len(payload) < PAYLOAD_BYTES:
        raise ForgedProbeError(f"{len(payload)} bytes are no probe")
    body, tag = payload[: _BODY.size], payload[_BODY.size : PAYLOAD_BYTES]
    if not hmac.compare_digest(_code(body, key), tag):
        raise ForgedProbeError("the authentication code is wrong")
    magic, version, kind, train, dpid, port, number, sent_at = _BODY.unpack(body)
    if magic != _MAGIC or version != 1:
        raise ForgedProbeError("the probe is of another version")
    return Probe(kind=Kind(kind), dpid=dpid, port=port, number=number, sent_at=sent_at, train=train)
