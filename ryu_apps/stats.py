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
    trials: float | None = None
    """Of a ratio: how many independent packets would tell as much; the interval of a path needs it."""
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
    """Smooth delay samples: what most packets see now, then EWMA.

    A low percentile over a short window drops what schedulers add to some probes, but also a queue that
    comes and goes, which packets do meet. So the value is the 40th percentile less `NOISE_S`, what schedulers
    add to it on an idle link, and at least the 20th. Medians would be too much: the skewed noise of several
    links adds up to more in a sum of medians than in the median of a path. The window is short so that a
    doubled delay shows within three seconds. Jitter is the mean absolute difference of consecutive samples,
    smoothed by 1/16 (RFC 3550, section 6.4.1).
    """

    WINDOW_S = 2.0
    SHARE = 0.4
    LEAST_SHARE = 0.2
    NOISE_S = 0.0003
    SMOOTHING_S = 0.2
    LEAST_OF_S = 60.0

    def __init__(self, *, source: str) -> None:
        self.source = source
        self._window: deque[tuple[float, float]] = deque()
        self._least: deque[tuple[float, float]] = deque()
        """Samples that no later one undercuts: the first is the least of LEAST_OF_S seconds."""
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
        self._add_least(now, delay_s)
        typical = self._typical()
        if self._value is None or gap_s > STALE_AFTER_S:
            self._value = typical
        else:
            self._value += (typical - self._value) * (1 - math.exp(-gap_s / self.SMOOTHING_S))
        self._last = (now, delay_s)
        self._count += 1

    def _typical(self) -> float:
        ordered = sorted(sample for _, sample in self._window)
        return max(quantile(ordered, self.LEAST_SHARE), quantile(ordered, self.SHARE) - self.NOISE_S)

    def _add_least(self, now: float, delay_s: float) -> None:
        while self._least and self._least[-1][1] >= delay_s:
            self._least.pop()
        self._least.append((now, delay_s))
        while self._least[0][0] < now - self.LEAST_OF_S:
            self._least.popleft()

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

    def queueing_s(self) -> float:
        """Return by how much the smoothed delay is longer than the least lately; 0 before any sample."""
        return max(0.0, self._value - self._least[0][1]) if self._value is not None else 0.0

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


def moved(before: float | None, after: float | None, *, share: float, floor: float) -> bool:
    """Tell whether a value moved by more than `share` of what it was, or became known."""
    if after is None or before is None:
        return before is None and after is not None
    return abs(after - before) > max(share * abs(before), floor)
