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
from benchmarks.network_accuracy.train_frames import TrainFrames
from workers.nic import read_at

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
    train_rx_bytes: int
    train_tx_bytes: int

    def rates_since(self, before: Reading) -> Rates:
        """Return the rates between two readings."""
        span_s = self.at - before.at
        return Rates(
            received_bps=8 * (self.rx_bytes - before.rx_bytes) / span_s,
            sent_bps=8 * (self.tx_bytes - before.tx_bytes) / span_s,
            trains_received_bps=8 * (self.train_rx_bytes - before.train_rx_bytes) / span_s,
            trains_sent_bps=8 * (self.train_tx_bytes - before.train_tx_bytes) / span_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a host received and sent, and how much of it was the controller's packet trains."""

    received_bps: float
    sent_bps: float
    trains_received_bps: float
    trains_sent_bps: float


def read(pid: int, trains: tuple[TrainFrames, TrainFrames]) -> Reading:
    """Read the counters of the interface in the namespace of `pid`."""
    path = Path(f"/proc/{pid}/net/dev")
    at, text = read_at(lambda: path.read_text(encoding="ascii"))
    lines = text.splitlines()[2:]
    name_and_fields = (line.partition(":") for line in lines)
    fields = next(values.split() for name, _, values in name_and_fields if name.strip() != "lo")
    return Reading(
        at=at,
        rx_bytes=int(fields[0]),
        rx_packets=int(fields[1]),
        tx_bytes=int(fields[8]),
        tx_packets=int(fields[9]),
        train_rx_bytes=trains[0].count_bytes(),
        train_tx_bytes=trains[1].count_bytes(),
    )


class Watch:
    """Read all hosts' counters twice a second and, as the orchestrator does for its workers, tell them."""

    def __init__(self, hosts: dict[str, dict[str, str]], northbound: Northbound, *, report: bool) -> None:
        self._hosts = hosts
        self._northbound = northbound
        self._readings: dict[str, list[Reading]] = {name: [] for name in hosts}
        self.reported = report
        """Whether the controller takes the hosts' counters; False once it has refused."""
        self._trains = {
            name: (
                TrainFrames(host["netns"], f"{name}-eth0", outgoing=False),
                TrainFrames(host["netns"], f"{name}-eth0", outgoing=True),
            )
            for name, host in hosts.items()
        }
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="interfaces", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + _INTERVAL_S, time.monotonic())
            told = {}
            for name, host in self._hosts.items():
                reading = read(int(host["pid"]), self._trains[name])
                self._readings[name].append(reading)
                told[host["ip"]] = {
                    "at": reading.at,
                    "rx_packets": reading.rx_packets,
                    "tx_packets": reading.tx_packets,
                }
            if self.reported:
                self.reported = self._northbound.put("/hosts/counters", {"hosts": told}) not in _REFUSED

    def rates_bps(self, host: str, since: float, until: float) -> Rates | None:
        """Return what arrived at and left a host in a span of Unix time; None if not covered."""
        readings = [item for item in self._readings[host] if since - _INTERVAL_S <= item.at <= until + 0.1]
        if len(readings) < 2:
            return None
        return readings[-1].rates_since(readings[0])

    def close(self) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join()
        for pair in self._trains.values():
            for trains in pair:
                trains.close()
