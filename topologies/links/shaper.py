"""Limit the rate of a direction with HTB and a first-in-first-out queue, where netem is missing.

Functions here return `tc -batch` lines for the wires' namespace; they run nothing.
"""

from __future__ import annotations

from topologies.links.wires import Direction
from topologies.specs import Impairment

_FRAME_BYTES = 1514
_BURST_S = 0.0005
"""How long a burst may go out unshaped: the kernel's timers wake the shaper about this precisely."""


def setup_lines(direction: Direction) -> list[str]:
    """Return the lines that shape a direction for the first time."""
    device, does = direction.egress, direction.impairment
    return [
        f"qdisc add dev {device} root handle 1: htb default 1",
        f"class add {_class(device, does)}",
        f"qdisc add {_queue(device, does)}",
    ]


def change_lines(direction: Direction, before: Impairment, after: Impairment) -> list[str]:
    """Return the lines that change rate or queue while it runs; what is queued stays queued."""
    lines = []
    if before.rate_bps != after.rate_bps:
        lines.append(f"class change {_class(direction.egress, after)}")
    if before.queue_packets != after.queue_packets:
        lines.append(f"qdisc change {_queue(direction.egress, after)}")
    return lines


def burst_bytes(rate_bps: float) -> int:
    """Return how much may go out unshaped at once after a pause: two frames at least."""
    return max(2 * _FRAME_BYTES, round(rate_bps / 8 * _BURST_S))


def _class(device: str, does: Impairment) -> str:
    burst = burst_bytes(does.rate_bps)
    return (
        f"dev {device} parent 1: classid 1:1 htb rate {round(does.rate_bps)}bit "
        f"burst {burst}b cburst {burst}b quantum {_FRAME_BYTES}"
    )


def _queue(device: str, does: Impairment) -> str:
    return f"dev {device} parent 1:1 handle 10: pfifo limit {does.queue_packets}"
