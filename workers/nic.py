"""The packet counters of the network interface that a worker uses: what the last mile really delivered.

The controller sees what it sends to a host, and not what arrives there. A host that tells its own counters
lets it compute the loss of the access link from real traffic (docs/northbound_api.md, hosts/counters).
"""

from __future__ import annotations

import time

import psutil


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
        at = time.time()
        counters = psutil.net_io_counters(pernic=True, nowrap=False).get(self._interface)
        if counters is None:
            self._interface = None
            return None
        return {"at": at, "rx_packets": counters.packets_recv, "tx_packets": counters.packets_sent}

    def _find(self) -> str | None:
        for name, addresses in psutil.net_if_addrs().items():
            if name != "lo" and any(item.address == self._address for item in addresses):
                return name
        return None
