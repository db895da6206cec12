"""Loss ratios with their intervals, from numbered probes and from counters at both ends: pure.

A loss ratio is of one direction, in 0..1. Counts are packets, times Unix seconds. Intervals are of 95 %.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import cache

from ryu_apps.changes import since_last_change
from ryu_apps.seconds import Seconds
from ryu_apps.stats import Measurement, unknown
from ryu_apps.tally import NOTHING, WINDOW_S, Tallies, Tally, Z

RAW_WINDOW_S = 5
MIN_SAMPLES = 20

MORE_LOST = 0.75
MORE_THAN_NONE_LOST = 0.9
"""Losses added for the upper end of a path's interval. One half (mid-P) covers 92 to 94 % where a single link
carries all the loss and the others are known well; one, the original, is needlessly wide.
"""
LEAST_LOST = 1e-6
"""Fewer packets than this are none."""


def wilson_interval(lost: float, sent: float) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a loss ratio; (0, 1) when nothing was sent."""
    if sent <= 0:
        return 0.0, 1.0
    ratio = lost / sent
    scale = 1 + Z * Z / sent
    centre = ratio + Z * Z / (2 * sent)
    spread = Z * math.sqrt(ratio * (1 - ratio) / sent + Z * Z / (4 * sent * sent))
    low = 0.0 if lost <= 0 else (centre - spread) / scale
    high = 1.0 if lost >= sent else (centre + spread) / scale
    return low, high


def path_interval(links: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the 95 % interval of 1 - product(1 - ratio) over links of (ratio, trials).

    On the scale of -log(1 - ratio) the links add up. Their sum is taken for a weighted sum of Poisson counts
    and given the gamma interval of Fay and Feuer (1997), which holds with few losses, none at all, and with
    unequal counts, where adding up the ends of the links' own intervals would be far too wide.
    """
    if not links or any(trials <= 0 for _, trials in links):
        return 0.0, 1.0
    total = variance = heaviest = 0.0
    for ratio, trials in links:
        ratio = min(ratio, 1 - 0.5 / max(trials, 1.0))
        rate = -math.log1p(-ratio) if ratio * trials > LEAST_LOST else 0.0
        spread = ratio / ((1 - ratio) * trials) if rate > 0 else 0.0
        total += rate
        variance += spread
        heaviest = max(heaviest, spread / rate if rate > 0 else 1 / trials)
    low = _gamma_quantile(total, variance, -Z) if total > 0 else 0.0
    more = heaviest * (MORE_LOST if total > 0 else MORE_THAN_NONE_LOST)
    high = _gamma_quantile(total + more, variance + more * more, Z)
    return -math.expm1(-low), -math.expm1(-high)


def _gamma_quantile(mean: float, variance: float, z: float) -> float:
    """Return a quantile of the gamma distribution, `z` that of the normal one (Wilson and Hilferty 1931)."""
    shape = mean * mean / variance
    return mean * max(0.0, 1 - 1 / (9 * shape) + z / (3 * math.sqrt(shape))) ** 3


def loss_measurement(
    tally: Tally, recent: Tally, *, source: str, age_s: float, round_trip: bool = False
) -> Measurement:
    """Return the loss of one direction with its interval; of half a round trip when `round_trip` says so.

    Round trips are lost in either direction; both are taken to lose the same share.
    """
    if tally.sent < MIN_SAMPLES:
        reason = f"{tally.sent:.0f} packets have had the time to arrive, {MIN_SAMPLES} are needed"
        return unknown(reason, source=source, unit="ratio")
    trials, ratio = tally.trials, tally.ratio
    low, high = wilson_interval(ratio * trials, trials)
    if round_trip:
        ratios = [_one_way(each) for each in (ratio, low, high)]
        trials *= _round_trip_worth(ratio, ratios[0])
        ratio, low, high = ratios
    return Measurement(
        value=ratio,
        raw=(_one_way(recent.ratio) if round_trip else recent.ratio) if recent.sent > 0 else None,
        low=low,
        high=high,
        samples=round(tally.sent),
        trials=trials,
        age_s=age_s,
        source=source,
        unit="ratio",
    )


def _round_trip_worth(ratio: float, one_way: float) -> float:
    """Return how many one-way packets tell as much as a round trip.

    var(-log(1 - one way)) is a quarter of that of the round trip.
    """
    return 4 * (1 - ratio) * one_way / (ratio * (1 - one_way)) if 0 < ratio < 1 else 2.0


def _one_way(ratio: float) -> float:
    return 1 - math.sqrt(1 - ratio)


class LossEstimator:
    """Count numbered probes that were sent and that arrived, over a sliding window.

    A probe counts once it is old enough to have arrived, so that those in flight are not taken for lost; how
    old follows the longest delay seen lately.
    """

    GRACE_S = 1.0
    FORGET_S = 15.0

    def __init__(self, *, source: str, round_trip: bool) -> None:
        self.source = source
        self.round_trip = round_trip
        self._outstanding: dict[int, float] = {}
        self._seconds = Seconds(keep_s=WINDOW_S + int(self.FORGET_S) + 2)
        self._slowest: deque[tuple[float, float]] = deque()
        """Arrival and delay of those that no later one exceeds: the first has the longest delay."""
        self.unanswered = 0
        """Probes sent since the last one that arrived."""

    def sent(self, now: float, number: int) -> None:
        """Note that probe `number` was sent."""
        self._seconds.sent(int(now))
        self._outstanding[number] = now
        self.unanswered += 1
        self._forget(now)

    def arrived(self, now: float, number: int) -> float | None:
        """Note an arrival; return when the probe was sent, None for a duplicate or a forgotten one."""
        sent_at = self._outstanding.pop(number, None)
        if sent_at is None:
            return None
        self.unanswered = 0
        self._seconds.arrived(int(sent_at))
        while self._slowest and self._slowest[-1][1] <= now - sent_at:
            self._slowest.pop()
        self._slowest.append((now, now - sent_at))
        return sent_at

    def _forget(self, now: float) -> None:
        while self._outstanding:
            number = next(iter(self._outstanding))
            if self._outstanding[number] >= now - self.FORGET_S:
                break
            del self._outstanding[number]
        while self._slowest and self._slowest[0][0] < now - 5:
            self._slowest.popleft()

    def settle_s(self) -> float:
        """Return how old a probe must be to count."""
        slowest_s = self._slowest[0][1] if self._slowest else 0.0
        return min(self.FORGET_S - 1, self.GRACE_S + 2 * slowest_s)

    def tally(self, now: float, window_s: float = WINDOW_S) -> Tally:
        """Return the probes of a window that had the time to arrive."""
        newest = math.floor(now - self.settle_s()) - 1
        sent, arrived = self._seconds.between(math.floor(newest - window_s), newest)
        return Tally(sent=sent, lost=sent - arrived)

    def loss(self, now: float, counted: Tallies = lambda window_s: NOTHING) -> Measurement:
        """Return the loss ratio of one direction with its 95 % interval, since it last changed.

        `counted` is what counters at both ends say of other packets in the same direction; they are pooled
        with one-way probes, each packet counting once. They stand in for round trips where they tell more.
        """

        def probes(window_s: float) -> Tally:
            return self.tally(now, window_s)

        def both(window_s: float) -> Tally:
            return probes(window_s) + counted(window_s)

        tallies: Tallies = both
        source, round_trip = self.source, False
        whole = counted(WINDOW_S)
        if self.round_trip:
            round_trip = whole.trials <= max(2 * probes(WINDOW_S).trials, MIN_SAMPLES)
            tallies, source = (probes, self.source) if round_trip else (counted, "counters")
        elif whole.sent > 0:
            source = f"counters+{self.source}"
        tallies = cache(tallies)
        return loss_measurement(
            since_last_change(tallies),
            tallies(RAW_WINDOW_S),
            source=source,
            age_s=self.settle_s(),
            round_trip=round_trip,
        )
