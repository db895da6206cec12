"""Rates from byte counters, and what they leave of a link: pure, time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ryu_apps.stats import STALE_AFTER_S, Measurement, unknown


class CounterRate:
    """Turn byte counters into a rate over the replies' own durations.

    Counters that go back are a restart of the device (the sample only starts anew), unless they were near the
    top of their 64 bits: then they wrapped. Samples are smoothed by EWMA; one that is far off counts more, so
    that a doubled rate shows after two replies.
    """

    SMOOTHING = 0.5
    JUMP_SMOOTHING = 0.9
    JUMP_SHARE = 0.3
    MAX_BPS = 1e13
    """No port carries more: a reply that says so is wrong."""
    UNIT = "bit/s"
    RECENT = 3
    KEPT = 16
    """So many counts are kept to tell the rate of a given time."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=self.RECENT)
        self._last: tuple[float, int, float] | None = None
        self._counted: deque[tuple[float, float]] = deque(maxlen=self.KEPT)
        """When a reply came, and the bytes of all until then."""
        self._surplus_bytes = 0.0
        self._value: float | None = None
        self._raw: float | None = None
        self._updated_at: float | None = None
        self._samples = 0

    def add(self, now: float, duration_s: float, byte_count: int, own_bytes: float = 0.0) -> float | None:
        """Take one reply in; return the rate since the one before, None where there is none.

        `own_bytes` is the count of those bytes that were packet trains of ours: they are no use of the link.
        """
        previous, self._last = self._last, (duration_s, byte_count, own_bytes)
        if previous is None or duration_s < previous[0]:
            self._counted.clear()
            self._counted.append((now, 0.0))
            return None
        if duration_s == previous[0]:
            return None
        delta = byte_count - previous[1]
        if delta < 0:
            if previous[1] < 1 << 63:
                self._counted.clear()
                return None
            delta += 1 << 64
        carried = self._not_ours(delta, own_bytes - previous[2])
        raw = carried * 8 / (duration_s - previous[0])
        if raw > self.MAX_BPS:
            return None
        self._counted.append((now, carried + (self._counted[-1][1] if self._counted else 0.0)))
        self._raw = raw
        self._recent.append(raw)
        self._value = self._raw if self._value is None else self._smoothed(self._value, self._raw)
        self._updated_at = now
        self._samples += 1
        return self._raw

    def _not_ours(self, delta: int, own_delta: float) -> float:
        """Return delta - own; what would be negative (a train seen before its count) is owed by the next.

        It is owed once: what the next reply does not hold either was lost on the way.
        """
        others = delta - own_delta - self._surplus_bytes
        self._surplus_bytes = min(max(0.0, -others), max(0.0, own_delta))
        return max(0.0, others)

    def _smoothed(self, value: float, raw: float) -> float:
        far_off = abs(raw - value) > self.JUMP_SHARE * max(raw, value)
        return value + (raw - value) * (self.JUMP_SMOOTHING if far_off else self.SMOOTHING)

    @property
    def recent_peak_bps(self) -> float | None:
        """The greatest of the last three samples: a transfer that stalls for a second has not ended."""
        return max(self._recent, default=None)

    @property
    def span(self) -> tuple[float, float] | None:
        """The times between which the counts are kept; None with fewer than two."""
        return None if len(self._counted) < 2 else (self._counted[0][0], self._counted[-1][0])

    def between(self, start: float, end: float) -> float:
        """Return the mean rate from `start` to `end`, with nothing before and after the kept counts."""
        return (self._bytes_until(end) - self._bytes_until(start)) * 8 / (end - start)

    def _bytes_until(self, at: float) -> float:
        """Return the bytes until then, taken as evenly spread between two replies."""
        before: tuple[float, float] | None = None
        for count in self._counted:
            if count[0] >= at:
                if before is None:
                    return count[1]
                share = (at - before[0]) / (count[0] - before[0])
                return before[1] + (count[1] - before[1]) * share
            before = count
        return before[1] if before is not None else 0.0

    def rate(self, now: float) -> Measurement:
        """Return the smoothed rate in bit/s."""
        if self._value is None or self._updated_at is None:
            return unknown("no two counter replies yet", source="counters", unit=self.UNIT)
        age_s = max(0.0, now - self._updated_at)
        stale = age_s > STALE_AFTER_S
        return Measurement(
            value=None if stale else self._value,
            raw=self._raw,
            samples=0 if stale else self._samples,
            age_s=age_s,
            source="counters",
            unit=self.UNIT,
            reason=f"no counter reply for {age_s:.0f} s" if stale else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PortCount:
    """A port's counters at one moment, and how many of the bytes were packet trains of ours."""

    duration_s: float
    tx_bytes: int
    rx_bytes: int
    own_tx_bytes: float
    own_rx_bytes: float

    def others_since(self, before: PortCount) -> tuple[float, float] | None:
        """Return the rates (sent, received) of what was not ours; None where counters went back."""
        seconds = self.duration_s - before.duration_s
        sent = self.tx_bytes - before.tx_bytes
        received = self.rx_bytes - before.rx_bytes
        if seconds <= 0 or sent < 0 or received < 0:
            return None
        sent_bytes = max(0.0, sent - (self.own_tx_bytes - before.own_tx_bytes))
        received_bytes = max(0.0, received - (self.own_rx_bytes - before.own_rx_bytes))
        return sent_bytes * 8 / seconds, received_bytes * 8 / seconds


def available(capacity: Measurement, used: Measurement, *, by: str = "used") -> Measurement:
    """Return capacity - used, at least 0; unknown when either is. `by` names what is used, for the reason."""
    for name, part in (("capacity", capacity), (by, used)):
        if part.reason is not None:
            return unknown(f"{name} is unknown: {part.reason}", source="derived", unit="bit/s")
    assert capacity.value is not None
    assert used.value is not None
    raw = None if used.raw is None else max(0.0, capacity.value - used.raw)
    return Measurement(
        value=max(0.0, capacity.value - used.value),
        raw=raw,
        samples=used.samples,
        age_s=used.age_s,
        source="derived",
        unit="bit/s",
    )
