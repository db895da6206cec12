"""What one TCP connection can get out of a path: its rate under loss, and what its beginning costs.

Rates are of Ethernet frames (bit/s), as links are configured; `wire_bits` converts from payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log2, sqrt

FRAME_BYTES = 1514
PAYLOAD_BYTES = 1448
"""Of a full frame: without Ethernet, IPv4 and TCP headers and the timestamp option."""
INITIAL_WINDOW = 10
"""Segments (RFC 6928)."""
CONGESTION_CONTROLS = ("bbr", "cubic")

_FRAME_BITS = 8 * FRAME_BYTES
_CUBIC_C, _CUBIC_BETA = 0.4, 0.7
_RENO = sqrt(3 / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathShape:
    """A path as a connection meets it: slowest link, round trip without queues, loss towards the receiver."""

    rate_bps: float
    rtt_s: float
    loss_ratio: float


def wire_bits(payload_bytes: float) -> float:
    """Return the bits that full frames take for `payload_bytes`."""
    return 8 * payload_bytes * FRAME_BYTES / PAYLOAD_BYTES


def sustained_bps(path: PathShape, congestion_control: str) -> float:
    """Return the long-term rate of one connection that has the path for itself.

    cubic: the larger of the window's two averages under random loss, one loss in 1/p segments: Reno's
    (Mathis et al., 1997) and that of RFC 8312, section 5, Eq. 6; at most the path's rate. BBR does not react
    to random loss: the path's rate less what is lost and sent again (Cardwell et al., 2016).

    Raises:
        ValueError: another congestion control.
    """
    if congestion_control == "bbr":
        return path.rate_bps * (1 - path.loss_ratio)
    if congestion_control != "cubic":
        known = ", ".join(CONGESTION_CONTROLS)
        raise ValueError(f"congestion control {congestion_control!r} is not modelled; modelled are {known}")
    return min(path.rate_bps * (1 - path.loss_ratio), _window_segments(path) * _FRAME_BITS / path.rtt_s)


def _window_segments(path: PathShape) -> float:
    """Average window under random loss, in segments."""
    loss = path.loss_ratio
    if loss <= 0:
        return inf
    reno = _RENO / sqrt(loss)
    scale: float = (_CUBIC_C * (3 + _CUBIC_BETA) / (4 * (1 - _CUBIC_BETA))) ** 0.25
    return max(reno, scale * float((path.rtt_s / loss) ** 0.75))


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """How a transfer begins: what it loses against full speed from the first moment, and its window then."""

    lost_s: float
    window_bits: float


def beginning(*, bits: float, rate_bps: float, rtt_s: float, window_bits: float) -> Beginning:
    """Work out a transfer of `bits` whose window starts at `window_bits` and doubles each round trip.

    It doubles until it carries `rate_bps` (slow start, and BBR's startup, which doubles as well) or until all
    is sent. What is lost is counted against a transfer that sends at `rate_bps` from the first moment.
    """
    full = rate_bps * rtt_s
    if window_bits >= full:
        return Beginning(lost_s=0.0, window_bits=window_bits)
    to_fill = ceil(log2(full / window_bits) - 1e-9)
    to_send = max(ceil(log2(bits / window_bits + 1) - 1e-9), 1)
    rounds = min(to_fill, to_send - 1)
    sent = window_bits * (2**rounds - 1)
    return Beginning(lost_s=rounds * rtt_s - sent / rate_bps, window_bits=window_bits * 2**rounds)


def initial_window_bits() -> float:
    """Return the window of a new connection, in bits on the wire."""
    return float(INITIAL_WINDOW * _FRAME_BITS)
