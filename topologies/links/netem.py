"""Impair wires with the kernel's netem: rate, delay, jitter, loss and queue in one qdisc per direction.

Functions here return `tc -batch` lines for the wires' namespace; they run nothing.
"""

from __future__ import annotations

from math import ceil

from topologies.links.wires import Direction
from topologies.specs import Impairment

_MTU_BITS = 8 * 1514


def setup_lines(direction: Direction) -> list[str]:
    """Return the lines that impair a direction for the first time."""
    return [f"qdisc add {_qdisc(direction.egress, direction.impairment)}"]


def change_lines(direction: Direction, before: Impairment, after: Impairment) -> list[str]:
    """Return the lines that change a direction while it runs; packets in flight stay in flight."""
    return [] if before == after else [f"qdisc change {_qdisc(direction.egress, after)}"]


def _qdisc(interface: str, does: Impairment) -> str:
    # netem keeps packets that are under way in the same queue as those that wait for the rate
    under_way = ceil((does.delay_s + does.jitter_s) * does.rate_bps / _MTU_BITS)
    words = [
        f"dev {interface} root handle 1: netem limit {does.queue_packets + under_way}",
        f"rate {round(does.rate_bps)}bit",
        f"delay {does.delay_s * 1e6:.0f}us {does.jitter_s * 1e6:.0f}us",
        f"loss {does.loss_ratio * 100:.6f}%",
    ]
    return " ".join(words)
