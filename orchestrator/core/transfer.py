"""What one TCP connection gets out of a path, from what is measured of it.

A path's rate is of Ethernet frames (bit/s), as links are configured and counted; what comes out is payload.
Sources: Mathis et al. 1997 (Reno under random loss), RFC 9438 section 5 (CUBIC), Cardwell et al. 2016 (BBR:
loss alone does not slow it down).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, log2, sqrt

CONGESTION_CONTROLS = ("bbr", "cubic")
SEGMENT_BYTES, FRAME_BYTES = 1448, 1514
"""Payload of a full frame, and the frame: without and with Ethernet, IPv4 and TCP headers and timestamps."""
INITIAL_WINDOW_BYTES = 10 * SEGMENT_BYTES
"""RFC 6928."""
_CUBIC_C, _CUBIC_BETA = 0.4, 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class PathShape:
    """A path as a connection meets it: the rate that is free, the round trip, loss towards the receiver."""

    rate_bps: float
    rtt_s: float
    loss_ratio: float


def sustained_bps(path: PathShape, control: str) -> float:
    """Return the long-term payload rate of one connection under `control` (one of CONGESTION_CONTROLS).

    BBR: what is free, less what is lost and sent again. cubic: at most that, and at most its average window
    per round trip, which is Reno's or CUBIC's own, whichever is larger (RFC 9438, section 5.1).
    """
    kept = path.rate_bps * (1 - path.loss_ratio) * SEGMENT_BYTES / FRAME_BYTES
    if control == "bbr" or path.loss_ratio <= 0 or path.rtt_s <= 0:
        return kept
    return min(kept, window_segments(path) * 8 * SEGMENT_BYTES / path.rtt_s)


def window_segments(path: PathShape) -> float:
    """Return cubic's average window under random loss, in segments."""
    if path.loss_ratio <= 0:
        return inf
    reno = sqrt(1.5 / path.loss_ratio)
    growth = (_CUBIC_C * (3 + _CUBIC_BETA) / (4 * (1 - _CUBIC_BETA))) ** 0.25
    return float(max(reno, growth * (path.rtt_s / path.loss_ratio) ** 0.75))


def transfer_s(payload_bytes: float, path: PathShape, control: str) -> float:
    """Return the seconds `payload_bytes` take over `path`: half a round trip, slow start, the rate."""
    if payload_bytes <= 0:
        return 0.0
    rate = max(sustained_bps(path, control), 1.0)
    return path.rtt_s / 2 + _slow_start_s(payload_bytes, rate, path.rtt_s) + 8 * payload_bytes / rate


def _slow_start_s(payload_bytes: float, rate_bps: float, rtt_s: float) -> float:
    """Return what a window that doubles each round trip loses against sending at the rate at once."""
    full = rate_bps * rtt_s / 8
    if full <= INITIAL_WINDOW_BYTES:
        return 0.0
    to_send = log2(payload_bytes * log(2) / INITIAL_WINDOW_BYTES + 1)
    rounds = min(log2(full / INITIAL_WINDOW_BYTES), to_send)
    sent = INITIAL_WINDOW_BYTES / log(2) * (2**rounds - 1)
    return max(0.0, rounds * rtt_s - 8 * sent / rate_bps)
