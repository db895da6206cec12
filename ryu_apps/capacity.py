"""What a link can carry, from packet trains: pure, time is an argument.

Rates in bit/s of Ethernet frames without preamble and check sequence, as switches count them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

from ryu_apps.stats import Measurement, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What one packet train told: a rate, or why none."""

    rate_bps: float | None
    dispersion_s: float
    markers: int
    reason: str | None = None


MIN_MARKERS = 6
MIN_CHECK_MARKERS = 4
MIN_DISPERSION_S = 0.030
SKIPPED_SHARE = 0.3
LEAST_EVENNESS = 0.6
"""The slower half of a train has at least this share of the faster half's rate."""

_Arrivals = Sequence[tuple[int, float]]


def train_rate(arrivals: _Arrivals) -> TrainResult:
    """Estimate the rate of the bottleneck from a train's marked packets.

    `arrivals` are (bytes of the train up to and including the marker, arrival time). The first 30 % are left
    out, since a token bucket lets a burst pass; the rate is the median of the slopes between all pairs of the
    rest (Theil-Sen), which late wake-ups of the controller move little.
    """
    if len(arrivals) < MIN_MARKERS:
        return _too_few(arrivals, MIN_MARKERS)
    kept = _behind_burst(arrivals)
    dispersion_s = kept[-1][1] - kept[0][1]
    reason = None
    if dispersion_s < MIN_DISPERSION_S:
        reason = f"the train was spread over {dispersion_s * 1e3:.1f} ms only"
    elif not _is_even(kept):
        reason = "the train arrived in lumps"
    return _result(kept, len(arrivals), reason)


def check_rate(arrivals: _Arrivals) -> TrainResult:
    """Estimate the rate from a short train with few markers: rough, to be compared with a known rate."""
    if len(arrivals) < MIN_CHECK_MARKERS:
        return _too_few(arrivals, MIN_CHECK_MARKERS)
    return _result(_behind_burst(arrivals), len(arrivals))


def _too_few(arrivals: _Arrivals, needed: int) -> TrainResult:
    reason = f"{len(arrivals)} markers came back, {needed} are needed"
    return TrainResult(rate_bps=None, dispersion_s=0.0, markers=len(arrivals), reason=reason)


def _behind_burst(arrivals: _Arrivals) -> _Arrivals:
    ordered = sorted(arrivals)
    first, last = ordered[0][0], ordered[-1][0]
    return [arrival for arrival in ordered if arrival[0] >= first + SKIPPED_SHARE * (last - first)]


def _result(kept: _Arrivals, markers: int, reason: str | None = None) -> TrainResult:
    """Return the median slope as a rate, none where there is a reason against it."""
    slopes = [(t2 - t1) / (b2 - b1) for (b1, t1), (b2, t2) in combinations(kept, 2) if b2 > b1]
    slope = median(slopes) if slopes else 0.0
    if reason is None and slope <= 0:
        reason = "the train arrived out of order"
    return TrainResult(
        rate_bps=8 / slope if reason is None else None,
        dispersion_s=max(0.0, kept[-1][1] - kept[0][1]),
        markers=markers,
        reason=reason,
    )


def _is_even(kept: _Arrivals) -> bool:
    """Tell whether both halves of a train came at about the same rate: a stall on the way is no rate."""
    (b1, t1), (b2, t2), (b3, t3) = kept[0], kept[len(kept) // 2], kept[-1]
    first, second = (t2 - t1) / (b2 - b1), (t3 - t2) / (b3 - b2)
    return min(first, second) >= LEAST_EVENNESS * max(first, second)


def without_cross(rate_bps: float, cross_bps: float) -> float:
    """Return the capacity C of a queue that a train came through at `rate_bps` beside traffic of others.

    The train came in at C, spread by the same rate in the other direction, and shared the queue in proportion
    to what came in: rate = C^2 / (C + cross).
    """
    return (rate_bps + math.sqrt(rate_bps * rate_bps + 4 * rate_bps * cross_bps)) / 2


def agree(one: float, other: float, share: float) -> bool:
    """Tell whether two rates differ by at most `share` of the larger one."""
    return abs(one - other) <= share * max(one, other)


@dataclass
class CapacityEstimator:
    """Keep the recent trains of a link: the median of those that agree with the newest ones.

    Two trains in a row that agree with each other and not with the older ones mean that the link changed: the
    older ones are forgotten.
    """

    source: str = "packet_train"
    keep: int = 5
    agreement: float = 0.15
    reason: str = "no packet train has been sent yet"
    _trains: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, now: float, rate_bps: float) -> None:
        """Take the estimate of one train in."""
        self._trains.append((now, rate_bps))
        while len(self._trains) > self.keep:
            self._trains.popleft()
        if len(self._trains) >= 3:
            self._forget_old()

    def replace(self, now: float, rate_bps: float) -> None:
        """Forget the older trains: the link has changed to this rate."""
        self._trains = deque([(now, rate_bps)])

    def forget(self, reason: str) -> None:
        """Forget all trains: the rate is not known any more."""
        self._trains.clear()
        self.reason = reason

    def _forget_old(self) -> None:
        rates = [rate for _, rate in self._trains]
        before = median(rates[:-2])
        if self._agree(rates[-1], rates[-2]) and not any(self._agree(rate, before) for rate in rates[-2:]):
            self._trains = deque(list(self._trains)[-2:])

    def _agree(self, one: float, other: float) -> bool:
        return agree(one, other, self.agreement)

    @property
    def unsettled(self) -> bool:
        """Whether the newest train disagrees with the value, or there are fewer than three."""
        if len(self._trains) < 3:
            return True
        return not self._agree(self._trains[-1][1], median(rate for _, rate in self._trains))

    @property
    def value_bps(self) -> float | None:
        """The estimate in bit/s, None before the first good train."""
        return median(rate for _, rate in self._trains) if self._trains else None

    def capacity(self, now: float) -> Measurement:
        """Return the estimated capacity; a train's estimate stays valid until another replaces it."""
        value = self.value_bps
        if value is None:
            return unknown(self.reason, source=self.source, unit="bit/s")
        rates = [rate for _, rate in self._trains]
        return Measurement(
            value=value,
            raw=rates[-1],
            low=min(rates),
            high=max(rates),
            samples=len(rates),
            age_s=max(0.0, now - self._trains[-1][0]),
            source=self.source,
            unit="bit/s",
        )
