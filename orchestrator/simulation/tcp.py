"""How a TCP transfer begins, and sizes on the wire; what it can get in the long run is `core.transfer`'s.

Rates and sizes here are of Ethernet frames, as links are configured.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, log2

from orchestrator.core.transfer import FRAME_BYTES, INITIAL_WINDOW_BYTES, SEGMENT_BYTES

FRAME_BITS = 8 * FRAME_BYTES


def wire_bits(payload_bytes: float) -> float:
    """Return the bits that full frames take for `payload_bytes`."""
    return 8 * payload_bytes * FRAME_BYTES / SEGMENT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """How a transfer begins: what it loses against full speed from the first moment, and its window then."""

    lost_s: float
    window_bits: float


def beginning(
    *, bits: float, rate_bps: float, rtt_s: float, window_bits: float, loss_ratio: float = 0.0
) -> Beginning:
    """Work out a transfer of `bits` whose window starts at `window_bits` and doubles each round trip.

    It doubles until it carries `rate_bps` (slow start, and BBR's startup, which doubles as well) or until all
    is sent. What is lost is counted against a transfer that sends at `rate_bps` from the first moment. A
    packet lost on the way up keeps the window as it is for one round trip (packet conservation, RFC 6937 and
    Linux's BBR); that counts as often as it is likely.
    """
    full = rate_bps * rtt_s
    if window_bits >= full:
        return Beginning(lost_s=0.0, window_bits=window_bits)
    to_fill = ceil(log2(full / window_bits) - 1e-9)
    to_send = max(ceil(log2(bits / window_bits + 1) - 1e-9), 1)
    rounds = min(to_fill, to_send - 1)
    sent = window_bits * (2**rounds - 1)
    held_up = 1 - float((1 - loss_ratio) ** (sent / FRAME_BITS))
    lost_s = (rounds + held_up) * rtt_s - sent / rate_bps
    return Beginning(lost_s=lost_s, window_bits=window_bits * 2**rounds)


def recovery_s(*, bits: float, rate_bps: float, rtt_s: float, loss_ratio: float) -> float:
    """Return how much later, on average, a transfer is complete because its last packets had losses.

    What is lost g seconds before the end is there again a round trip after it was due, so the end comes
    R - g later; the last loss before the end is Exp(p x packets per second) away.
    """
    losses_per_s = loss_ratio * rate_bps / FRAME_BITS
    if losses_per_s <= 0:
        return 0.0
    window_s = min(rtt_s, bits / rate_bps)
    none = exp(-losses_per_s * window_s)
    return rtt_s * (1 - none) - ((1 - none) / losses_per_s - window_s * none)


def initial_window_bits() -> float:
    """Return the window of a new connection, in bits on the wire (RFC 6928)."""
    return wire_bits(INITIAL_WINDOW_BYTES)
