"""Read the hosts' own interface counters: ground truth of what crosses an access link, and a host's report.

The counters are those of the one interface in a host's namespace, read through /proc of a process there:
bytes are of Ethernet frames, as the emulated rates are.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.network_accuracy.northbound import Northbound

_INTERVAL_S = 0.5
_REFUSED = (404, 405, 501)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Counters of a host's interface at a Unix time."""

    at: float
    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


def read(pid: int) -> Reading:
    """Read the counters of the interface in the namespace of `pid`."""
    lines = Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines()[2:]
    name_and_fields = (line.partition(":") for line in lines)
    fields = next(values.split() for name, _, values in name_and_fields if name.strip() != "lo")
    return Reading(
        at=time.time(),
        rx_bytes=int(fields[0]),
        rx_packets=int(fields[1]),
        tx_bytes=int(fields[8]),
        tx_packets=int(fields[9]),
    )


class Watch:
    """Read all hosts' counters twice a second; tell them to the controller if it takes them."""

    def __init__(self, hosts: dict[str, dict[str, str]], northbound: Northbound, *, report: bool) -> None:
        self._hosts = hosts
        self._northbound = northbound
        self._readings: dict[str, list[Reading]] = {name: [] for name in hosts}
        self.reported = report
        """Whether the controller takes the hosts' counters; False once it has refused."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="interfaces", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        turn = 0
        while not self._stopping.wait(_INTERVAL_S):
            turn += 1
            for name, host in self._hosts.items():
                reading = read(int(host["pid"]))
                self._readings[name].append(reading)
                if self.reported and turn % 2 == 0:
                    self._report(host["ip"], reading)

    def _report(self, ip: str, reading: Reading) -> None:
        body = {"at": reading.at, "rx_packets": reading.rx_packets, "tx_packets": reading.tx_packets}
        if self._northbound.put(f"/hosts/{ip}/counters", body) in _REFUSED:
            self.reported = False

    def rates_bps(self, host: str, since: float, until: float) -> tuple[float, float] | None:
        """Return the rates that arrived at and left a host in a span of Unix time; None if not covered."""
        readings = [item for item in self._readings[host] if since - _INTERVAL_S <= item.at <= until + 0.1]
        if len(readings) < 2:
            return None
        first, last = readings[0], readings[-1]
        span_s = last.at - first.at
        return (
            8 * (last.rx_bytes - first.rx_bytes) / span_s,
            8 * (last.tx_bytes - first.tx_bytes) / span_s,
        )

    def close(self) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join()
