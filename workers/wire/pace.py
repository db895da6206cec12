"""How fast a large message arrived, past TCP's slow start: pure but for asking the kernel for a round trip.

The clock runs over the second half of a message. A connection that begins slowly doubles its window every
round trip, so by then it has had a window as large as the first half; where that covers the rate times the
round trip, the second half came as fast as the path and its ends let it.
"""

from __future__ import annotations

import math
import socket
import struct
from dataclasses import dataclass

MIN_BODY_BYTES = 1 << 18
"""Smaller messages are not timed."""
MIN_SECONDS = 0.05
_TCP_INFO_BYTES = 104
_RTT_AT = 68
"""Where `tcpi_rtt`, in microseconds, stands in Linux' struct tcp_info."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the receiver of a message saw: so many payload bytes in so many seconds, until `ended_s`."""

    payload_bytes: int
    seconds: float
    ended_s: float

    def to_fields(self, now_s: float) -> dict[str, float]:
        """Give it as a field of a reply; `now_s` is on the clock of `ended_s`."""
        return {"bytes": self.payload_bytes, "seconds": self.seconds, "ago_s": max(0.0, now_s - self.ended_s)}


class Pace:
    """Times the second half of a message's body; tell it of all that arrives."""

    def __init__(self, body_bytes: int) -> None:
        self._skipped_bytes = body_bytes // 2
        self._arrived_bytes = 0
        self._began: tuple[float, int] | None = None

    def add(self, count: int, now_s: float) -> None:
        """Take in that `count` more bytes have arrived at `now_s`."""
        self._arrived_bytes += count
        if self._began is None and self._arrived_bytes >= self._skipped_bytes:
            self._began = now_s, self._arrived_bytes

    def receipt(self, now_s: float, round_trip_s: float | None) -> Receipt | None:
        """Return what was seen of the whole message; None if it says nothing of the path."""
        if self._began is None or round_trip_s is None:
            return None
        began_s, before_bytes = self._began
        payload_bytes, seconds = self._arrived_bytes - before_bytes, now_s - began_s
        if payload_bytes <= 0 or seconds < MIN_SECONDS:
            return None
        window_bytes = payload_bytes / seconds * round_trip_s
        if window_bytes > before_bytes:
            return None
        return Receipt(payload_bytes=payload_bytes, seconds=seconds, ended_s=now_s)


def pace_of(body_bytes: int) -> Pace | None:
    """Return the pace of a message that is worth timing, else None."""
    return Pace(body_bytes) if body_bytes >= MIN_BODY_BYTES else None


def round_trip_s(sock: socket.socket) -> float | None:
    """Return the kernel's smoothed round trip of a TCP connection; None where it has none."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (OSError, ValueError):
        return None
    if len(info) < _RTT_AT + 4:
        return None
    microseconds = struct.unpack_from("=I", info, _RTT_AT)[0]
    return microseconds * 1e-6 if microseconds > 0 else None


def read_receipt(told: object, *, most_bytes: int, most_s: float) -> tuple[int, float, float] | None:
    """Check what a peer says it saw: (bytes, seconds, seconds ago); None if it is none or cannot be.

    It cannot have got more than `most_bytes` that were sent, nor have taken longer than `most_s`.
    """
    if not isinstance(told, dict):
        return None
    values = [told.get(name) for name in ("bytes", "seconds", "ago_s")]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
    payload_bytes, seconds, ago_s = (float(value) for value in values if value is not None)
    possible = 1 <= payload_bytes <= most_bytes and seconds >= MIN_SECONDS and ago_s >= 0
    if not possible or seconds + ago_s > most_s:
        return None
    return int(payload_bytes), seconds, ago_s
