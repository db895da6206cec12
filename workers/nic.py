"""The packet counters of the network interface that a worker uses: what the last mile really delivered.

The controller sees what it sends to a host, and not what arrives there. A host that tells its own counters
lets it compute the loss of the access link from real traffic (docs/northbound_api.md, hosts/counters).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

Value = TypeVar("Value")

SHORT_S = 0.0005
"""A reading that took no longer than this is of one moment."""
MAX_READINGS = 5


def read_at(read: Callable[[], Value], clock: Callable[[], float] = time.time) -> tuple[float, Value]:
    """Return what `read` returns, and the Unix time of that moment.

    A process that loses its processor between looking at the clock and at a counter takes the one for the
    other's moment; 20 ms at 3000 packets/s are 60 packets that seem to be lost. So the clock is looked at on
    both sides, and a reading that took long is made again; the shortest of MAX_READINGS counts.
    """
    best = None
    for _ in range(MAX_READINGS):
        before = clock()
        value = read()
        took_s = abs(clock() - before)
        if best is None or took_s < best[0]:
            best = took_s, before + took_s / 2, value
        if took_s <= SHORT_S:
            break
    assert best is not None
    return best[1], best[2]


class PacketCounters:
    """Read the counters of the interface that has `address`; loopback addresses have none to tell."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._interface: str | None = None

    def read(self) -> dict[str, float] | None:
        """Return `at` (Unix s), `rx_packets`, `tx_packets`; None while no interface has the address."""
        if self._interface is None:
            self._interface = self._find()
        if self._interface is None:
            return None
        at, all_counters = read_at(lambda: psutil.net_io_counters(pernic=True, nowrap=False))
        counters = all_counters.get(self._interface)
        if counters is None:
            self._interface = None
            return None
        return {"at": at, "rx_packets": counters.packets_recv, "tx_packets": counters.packets_sent}

    def _find(self) -> str | None:
        for name, addresses in psutil.net_if_addrs().items():
            if name != "lo" and any(item.address == self._address for item in addresses):
                return name
        return None
