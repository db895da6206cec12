"""What a link can carry, from packet trains: pure, time is an argument.

Rates in bit/s of Ethernet frames without preamble and check sequence, as switches count them.
"""

from __future__ import annotations

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
    reason: str | None = None


MIN_MARKERS = 6
MIN_DISPERSION_S = 0.030
SKIPPED_SHARE = 0.3
LEAST_EVENNESS = 0.6
"""The slower half of a train has at least this share of the faster half's rate."""


def train_rate(arrivals: Sequence[tuple[int, float]]) -> TrainResult:
    """Estimate the rate of the bottleneck from a train's marked packets.

    `arrivals` are (bytes of the train up to and including the marker, arrival time). The first 30 % are left
    out, since a token bucket lets a burst pass; the rate is the median of the slopes between all pairs of the
    rest (Theil-Sen), which late wake-ups of the controller move little.
    """
    ordered = sorted(arrivals)
    if len(ordered) < MIN_MARKERS:
        return TrainResult(
            rate_bps=None,
            dispersion_s=0.0,
            reason=f"{len(ordered)} markers came back, {MIN_MARKERS} are needed",
        )
    first, last = ordered[0][0], ordered[-1][0]
    kept = [arrival for arrival in ordered if arrival[0] >= first + SKIPPED_SHARE * (last - first)]
    dispersion_s = kept[-1][1] - kept[0][1]
    if dispersion_s < MIN_DISPERSION_S:
        reason = f"the train was spread over {dispersion_s * 1e3:.1f} ms only"
        return TrainResult(rate_bps=None, dispersion_s=max(0.0, dispersion_s), reason=reason)
    if not _is_even(kept):
        return TrainResult(rate_bps=None, dispersion_s=dispersion_s, reason="the train arrived in lumps")
    slope = median((t2 - t1) / (b2 - b1) for (b1, t1), (b2, t2) in combinations(kept, 2) if b2 > b1)
    if slope <= 0:
        return TrainResult(rate_bps=None, dispersion_s=dispersion_s, reason="the train arrived out of order")
    return TrainResult(rate_bps=8 / slope, dispersion_s=dispersion_s)


def _is_even(kept: Sequence[tuple[int, float]]) -> bool:
    """Tell whether both halves of a train came at about the same rate: a stall on the way is no rate."""
    (b1, t1), (b2, t2), (b3, t3) = kept[0], kept[len(kept) // 2], kept[-1]
    first, second = (t2 - t1) / (b2 - b1), (t3 - t2) / (b3 - b2)
    return min(first, second) >= LEAST_EVENNESS * max(first, second)


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

    def _forget_old(self) -> None:
        rates = [rate for _, rate in self._trains]
        before = median(rates[:-2])
        newest_agree = self._agree(rates[-1], rates[-2])
        if newest_agree and not self._agree(rates[-1], before) and not self._agree(rates[-2], before):
            self._trains = deque(list(self._trains)[-2:])

    def _agree(self, one: float, other: float) -> bool:
        return abs(one - other) <= self.agreement * max(one, other)

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
