"""The classic way to measure in a Ryu network, as widely published: pure.

Delay of a link between switches = time from the packet-out to the packet-in at the neighbour - half of the
echo time of each switch; one probe per port and round, no smoothing, no last mile, no loss. Bandwidth: bytes
that a port sent *and* received, over the time between two replies, against the speed that the port reports
(Open vSwitch: 10 Gbit/s, whatever the link can do). Rounds are Ryu's own for LLDP: 0.9 s per port, 0.05 s
from port to port.
"""

from __future__ import annotations

from dataclasses import dataclass

PROBE_PERIOD_S = 0.9
PROBE_GUARD_S = 0.05
POLL_PERIOD_S = 1.0
"""More often than is usual (10 s), so that it is not the period that is judged."""


def link_delay_s(total_s: float, source_echo_s: float, target_echo_s: float) -> float:
    """Return a link's delay from one probe and one echo round trip per switch; never below 0."""
    return max(0.0, total_s - source_echo_s / 2 - target_echo_s / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortReading:
    """Counters of a port and how long it has been up."""

    up_s: float
    tx_bytes: int
    rx_bytes: int


def port_speed_bps(before: PortReading, after: PortReading) -> float | None:
    """Return what a port carries, sent and received summed; None when nothing can be told."""
    span_s = after.up_s - before.up_s
    if span_s <= 0:
        return None
    moved = after.tx_bytes + after.rx_bytes - before.tx_bytes - before.rx_bytes
    return 8 * moved / span_s


def free_bps(port_capacity_bps: float, speed_bps: float) -> float:
    """Return what the classic method takes to be free on a port."""
    return max(0.0, port_capacity_bps - speed_bps)
