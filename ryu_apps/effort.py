"""What measuring costs: packets and bytes sent to measure, and the controller's share of a processor core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

INTERVAL_S = 1.0
WINDOW = 10
"""So many intervals a rate is taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counts since the start at one moment (Unix seconds); `cpu_s` of the whole controller.

    The limit of probes, why it is not more, and how late the switches answer are of that moment.
    """

    at: float
    probe_packets: float
    probe_bytes: float
    trains: float
    train_bytes: float
    cpu_s: float
    probe_limit_per_s: float
    probe_limit_reason: str | None
    late_switch_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Rates over the last `over_s` seconds; while there is no such span, nothing but the `reason`.

    Bits are of whole Ethernet frames as they are sent, on all links together; `controller_cpu_ratio` is a
    share of one core, for everything the controller does.
    """

    over_s: float | None = None
    probe_packets_per_s: float | None = None
    probe_bps: float | None = None
    trains_per_s: float | None = None
    train_bps: float | None = None
    controller_cpu_ratio: float | None = None
    probe_limit_per_s: float | None = None
    probe_limit_reason: str | None = None
    late_switch_s: float | None = None
    reason: str | None = None


class Effort:
    """Own the totals of the last seconds."""

    def __init__(self, read: Callable[[], Totals], *, sleep: Callable[[float], None]) -> None:
        self._read = read
        self._sleep = sleep
        self._history: deque[Totals] = deque(maxlen=WINDOW + 1)

    def run(self) -> None:
        """Note the totals again and again, for ever."""
        while True:
            self.note()
            self._sleep(INTERVAL_S)

    def note(self) -> None:
        """Note the totals as they are now."""
        self._history.append(self._read())

    def rates(self) -> Rates:
        """Return the rates over the last seconds."""
        if len(self._history) < 2 or self._history[-1].at <= self._history[0].at:
            return Rates(reason="the controller has just started")
        first, last = self._history[0], self._history[-1]
        over_s = last.at - first.at
        return Rates(
            over_s=over_s,
            probe_packets_per_s=(last.probe_packets - first.probe_packets) / over_s,
            probe_bps=8 * (last.probe_bytes - first.probe_bytes) / over_s,
            trains_per_s=(last.trains - first.trains) / over_s,
            train_bps=8 * (last.train_bytes - first.train_bytes) / over_s,
            controller_cpu_ratio=(last.cpu_s - first.cpu_s) / over_s,
            probe_limit_per_s=last.probe_limit_per_s,
            probe_limit_reason=last.probe_limit_reason,
            late_switch_s=last.late_switch_s,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the rates for the northbound API."""
        return asdict(self.rates())
