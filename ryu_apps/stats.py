"""Estimators behind every measured value: pure, time is an argument.

Times are Unix seconds, durations seconds, rates bit/s, loss a ratio in 0..1. Every estimator answers with a
`Measurement`; unknown is None with the reason.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

STALE_AFTER_S = 10.0
"""A value without a new sample for so long is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measured value as the northbound API shows it; `value` is None exactly when `reason` says why."""

    value: float | None
    raw: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    age_s: float | None = None
    source: str
    unit: str
    reason: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.reason is None):
            raise ValueError(f"a measurement has a value or a reason, not {self.value!r} and {self.reason!r}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a measured value is finite, not {self.value!r}")

    def as_json(self) -> dict[str, object]:
        """Return the measurement object of docs/northbound_api.md."""
        return {
            "value": self.value,
            "raw": self.raw,
            "low": self.low,
            "high": self.high,
            "samples": self.samples,
            "age_s": self.age_s,
            "source": self.source,
            "unit": self.unit,
            "reason": self.reason,
        }


def unknown(reason: str, *, source: str, unit: str) -> Measurement:
    """Return a value that is not known, and why."""
    return Measurement(value=None, source=source, unit=unit, reason=reason)


def quantile(values: Iterable[float], share: float) -> float:
    """Return the `share` quantile (0..1) of at least one value, interpolated linearly."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


class DelayEstimator:
    """Smooth delay samples: a low percentile over a short window, then EWMA.

    The percentile drops what queues and schedulers add; the window is short so that a doubled delay shows
    within three seconds at ten samples a second. Jitter is the mean absolute difference of consecutive
    samples, smoothed by 1/16 (RFC 3550, section 6.4.1).
    """

    WINDOW_S = 2.0
    SHARE = 0.2
    SMOOTHING_S = 0.3

    def __init__(self, *, source: str) -> None:
        self.source = source
        self._window: deque[tuple[float, float]] = deque()
        self._value: float | None = None
        self._jitter: float | None = None
        self._last: tuple[float, float] | None = None
        self._count = 0

    def add(self, now: float, delay_s: float) -> None:
        """Take one sample in; what is not a finite number >= 0 is left out."""
        if not math.isfinite(delay_s) or delay_s < 0:
            return
        gap_s = now - self._last[0] if self._last else math.inf
        self._add_jitter(delay_s, gap_s)
        self._window.append((now, delay_s))
        while self._window[0][0] < now - self.WINDOW_S:
            self._window.popleft()
        low = quantile((sample for _, sample in self._window), self.SHARE)
        if self._value is None or gap_s > STALE_AFTER_S:
            self._value = low
        else:
            self._value += (low - self._value) * (1 - math.exp(-gap_s / self.SMOOTHING_S))
        self._last = (now, delay_s)
        self._count += 1

    def _add_jitter(self, delay_s: float, gap_s: float) -> None:
        if self._last is None or gap_s > STALE_AFTER_S:
            self._jitter = None
            return
        step = abs(delay_s - self._last[1])
        self._jitter = step if self._jitter is None else self._jitter + (step - self._jitter) / 16

    def delay(self, now: float) -> Measurement:
        """Return the smoothed delay in seconds."""
        return self._measurement(now, self._value, None if self._last is None else self._last[1])

    def jitter(self, now: float) -> Measurement:
        """Return the smoothed jitter in seconds."""
        return self._measurement(now, self._jitter, None)

    def _measurement(self, now: float, value: float | None, raw: float | None) -> Measurement:
        if self._last is None:
            return unknown("no probe has arrived yet", source=self.source, unit="s")
        age_s = max(0.0, now - self._last[0])
        reason = None
        if age_s > STALE_AFTER_S:
            value, reason = None, f"no probe has arrived for {age_s:.0f} s"
        elif value is None:
            reason = "one sample is not enough"
        return Measurement(
            value=value,
            raw=raw,
            samples=len(self._window) if reason is None else 0,
            age_s=age_s,
            source=self.source,
            unit="s",
            reason=reason,
        )


def wilson_interval(lost: int, sent: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a loss ratio; (0, 1) when nothing was sent."""
    if sent == 0:
        return 0.0, 1.0
    z = 1.959964
    ratio = lost / sent
    scale = 1 + z * z / sent
    centre = ratio + z * z / (2 * sent)
    spread = z * math.sqrt(ratio * (1 - ratio) / sent + z * z / (4 * sent * sent))
    low = 0.0 if lost == 0 else (centre - spread) / scale
    high = 1.0 if lost == sent else (centre + spread) / scale
    return low, high


@dataclass(slots=True)
class _Second:
    sent: int = 0
    arrived: int = 0


class LossEstimator:
    """Count numbered probes that were sent and that arrived, over a sliding window.

    A probe counts once it is old enough to have arrived, so that those in flight are not taken for lost; how
    old follows the longest delay seen lately.
    """

    WINDOW_S = 60
    RAW_WINDOW_S = 5
    GRACE_S = 1.0
    FORGET_S = 15.0
    MIN_SAMPLES = 20

    def __init__(self, *, source: str, round_trip: bool) -> None:
        self.source = source
        self._round_trip = round_trip
        self._outstanding: dict[int, float] = {}
        self._seconds: dict[int, _Second] = {}
        self._slowest: deque[tuple[float, float]] = deque()
        self.unanswered = 0
        """Probes sent since the last one that arrived."""

    def sent(self, now: float, number: int) -> None:
        """Note that probe `number` was sent."""
        self._seconds.setdefault(int(now), _Second()).sent += 1
        self._outstanding[number] = now
        self.unanswered += 1
        self._forget(now)

    def arrived(self, now: float, number: int) -> float | None:
        """Note an arrival; return when the probe was sent, None for a duplicate or a forgotten one."""
        sent_at = self._outstanding.pop(number, None)
        if sent_at is None:
            return None
        self.unanswered = 0
        second = self._seconds.get(int(sent_at))
        if second is not None:
            second.arrived += 1
        self._slowest.append((now, now - sent_at))
        return sent_at

    def _forget(self, now: float) -> None:
        while self._outstanding:
            number = next(iter(self._outstanding))
            if self._outstanding[number] >= now - self.FORGET_S:
                break
            del self._outstanding[number]
        while self._seconds and next(iter(self._seconds)) < now - self.WINDOW_S - self.FORGET_S:
            del self._seconds[next(iter(self._seconds))]
        while self._slowest and self._slowest[0][0] < now - 5:
            self._slowest.popleft()

    def _settle_s(self) -> float:
        slowest_s = max((delay_s for _, delay_s in self._slowest), default=0.0)
        return min(self.FORGET_S - 1, self.GRACE_S + 2 * slowest_s)

    def _count(self, now: float, window_s: int) -> tuple[int, int]:
        """Return (sent, lost) of the probes that had the time to arrive."""
        newest = math.floor(now - self._settle_s()) - 1
        seconds = [second for start, second in self._seconds.items() if newest - window_s < start <= newest]
        sent = sum(second.sent for second in seconds)
        return sent, sent - sum(second.arrived for second in seconds)

    def loss(self, now: float) -> Measurement:
        """Return the loss ratio of one direction with its 95 % interval.

        Round trips are lost in either direction; both are taken to lose the same share.
        """
        sent, lost = self._count(now, self.WINDOW_S)
        if sent < self.MIN_SAMPLES:
            reason = f"{sent} probes have had the time to arrive, {self.MIN_SAMPLES} are needed"
            return unknown(reason, source=self.source, unit="ratio")
        recent_sent, recent_lost = self._count(now, self.RAW_WINDOW_S)
        low, high = wilson_interval(lost, sent)
        return Measurement(
            value=self._one_way(lost / sent),
            raw=self._one_way(recent_lost / recent_sent) if recent_sent else None,
            low=self._one_way(low),
            high=self._one_way(high),
            samples=sent,
            age_s=self._settle_s(),
            source=self.source,
            unit="ratio",
        )

    def _one_way(self, ratio: float) -> float:
        return 1 - math.sqrt(1 - ratio) if self._round_trip else ratio


def moved(before: float | None, after: float | None, *, share: float, floor: float) -> bool:
    """Tell whether a value moved by more than `share` of what it was, or became known."""
    if after is None or before is None:
        return before is None and after is not None
    return abs(after - before) > max(share * abs(before), floor)
