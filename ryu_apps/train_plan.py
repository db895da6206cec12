"""Decide when a link's next packet train goes, how long it is, and what its result means: pure.

Full trains measure. Between them short check trains only test whether the estimate still holds; one that
disagrees calls a full train at once, and where both agree the estimate changes at once. Times are Unix
seconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from ryu_apps.capacity import MIN_DISPERSION_S, MIN_MARKERS, CapacityEstimator, TrainResult, agree

FRAME_BYTES = 1442
MIN_FRAMES = 24
MAX_FRAMES = 694
MARKERS = 24
SPREAD_S = 0.060
MAX_GROWTH = 3.0
RETRY_S = 2.0
UNSETTLED_S = 1.0
QUICK_TRAINS = 8
TOO_FAST_S = 60.0
OVERRUNS_FRAMES = 4 * MIN_FRAMES

MIN_CHECK_FRAMES = 8
MAX_CHECK_FRAMES = 160
CHECK_MARKERS = 6
CHECK_SPREAD_S = 0.040
CHECK_RETRY_S = 0.5
NOISE_S = 0.004
"""What a busy machine may add to or take from the spread of a train."""
STALL_S = 0.060
"""A train that differs by less may have met a machine that stood still."""
HOLDS_SHARE = 0.3
DRIFT_SHARE = 0.12
CONFIRMS_SHARE = 0.3
ALARM_PAUSE_S = 2.0
MAX_ALARM_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often trains go; `check_share` bounds the check trains as a share of a link's capacity."""

    interval_s: float
    check_interval_s: float
    check_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One train to send: `frames` of them, of which every n-th is marked."""

    frames: int
    markers: int
    check: bool

    @property
    def every(self) -> int:
        """How many frames there are to a marked one."""
        return math.ceil(self.frames / self.markers)

    @property
    def count(self) -> int:
        """How many marked frames there are."""
        return max(1, self.frames // self.every)

    @property
    def sent_bytes(self) -> int:
        """What is sent: whole groups, each with a marked frame at its end."""
        return self.count * self.every * FRAME_BYTES


@dataclass(slots=True, kw_only=True)
class TrainPlan:
    """Own one link's estimate and its next trains."""

    pace: Pace
    full_at: float
    estimator: CapacityEstimator = field(default_factory=CapacityEstimator)
    check_at: float = math.inf
    frames: int = MIN_FRAMES
    hurry: int = QUICK_TRAINS
    """How many more full trains may follow each other quickly while the estimate is not settled."""
    suspected_bps: float | None = None
    """What a check train said when it disagreed; until the next full train."""
    alarms: int = 0
    _alarm_after: float = 0.0
    _alarm_pause_s: float = ALARM_PAUSE_S
    _confirmed: bool = False
    """Whether a full train has said the same as the check."""
    _missed: bool = False
    """Whether the last check told nothing: only the first of those is repeated soon."""
    _ratios: deque[float] = field(default_factory=lambda: deque(maxlen=5))

    def next_train(self, now: float) -> Order | None:
        """Return the train that is due, None while none is."""
        if self.pace.interval_s <= 0:
            return None
        if self.full_at <= now:
            return Order(frames=self.frames, markers=MARKERS, check=False)
        if self.check_at <= now and self.pace.check_interval_s > 0:
            return Order(frames=self._check_frames(), markers=CHECK_MARKERS, check=True)
        return None

    def _check_frames(self) -> int:
        value = self.estimator.value_bps
        if value is None:
            return MIN_FRAMES
        spread_s = min(CHECK_SPREAD_S, self.pace.check_share * self.pace.check_interval_s)
        return _between(MIN_CHECK_FRAMES, _frames(value, spread_s), MAX_CHECK_FRAMES)

    def _check_pause_s(self) -> float:
        """Return the time between check trains: longer where the shortest train is too much for a link."""
        value = self.estimator.value_bps
        if value is None:
            return self.pace.check_interval_s
        least_s = self._check_frames() * FRAME_BYTES * 8 / (self.pace.check_share * value)
        return max(self.pace.check_interval_s, least_s)

    def request(self, now: float) -> None:
        """Make the next full train due: the link seems to have changed."""
        self.full_at = min(self.full_at, now)
        self.hurry = QUICK_TRAINS

    def busy(self, now: float, order: Order, why: str) -> None:
        """Note that a train cannot go now."""
        if order.check:
            self.check_at = now + CHECK_RETRY_S
        else:
            self.full_at = now + RETRY_S
        if self.estimator.value_bps is None:
            self.estimator.reason = why

    def spoiled(self, now: float, why: str) -> None:
        """Note that others used the link while a full train crossed it: neither it nor an alarm counts."""
        self.suspected_bps = None
        self.full_at = now + RETRY_S
        self.check_at = max(self.check_at, now + CHECK_RETRY_S)
        if self.estimator.value_bps is None:
            self.estimator.reason = why

    def started(self, now: float, order: Order) -> None:
        """Note that a train has gone; nothing is due until it is back."""
        if order.check:
            self.check_at = now + self._check_pause_s()
        else:
            self.full_at = now + RETRY_S

    def learn(self, now: float, order: Order, result: TrainResult, *, lost: float) -> None:
        """Take a train's result in; `lost` is the link's loss ratio."""
        if order.check:
            self._learn_check(now, result, lost)
        else:
            self._learn_full(now, result, lost)

    # Check trains.

    def _learn_check(self, now: float, result: TrainResult, lost: float) -> None:
        if result.rate_bps is None:
            if not self._missed:
                self.check_at = min(self.check_at, now + CHECK_RETRY_S)
            self._missed = True
            return
        self._missed = False
        rate_bps, value = result.rate_bps * (1 - lost), self.estimator.value_bps
        if value is None:
            if result.dispersion_s > 2 * NOISE_S:
                self._alarm(now, rate_bps)
        elif not self._holds(rate_bps, value, result.dispersion_s) or self._drifts(rate_bps / value):
            self._alarm(now, min(MAX_GROWTH * value, max(rate_bps, value / 8)))

    def _holds(self, rate_bps: float, value: float, dispersion_s: float) -> bool:
        expected_s = dispersion_s * rate_bps / value
        return abs(dispersion_s - expected_s) <= max(HOLDS_SHARE * expected_s, NOISE_S)

    def _drifts(self, ratio: float) -> bool:
        """Tell whether the last checks, each within bounds, are off in the same direction."""
        self._ratios.append(ratio)
        full = len(self._ratios) == self._ratios.maxlen
        return full and not agree(median(self._ratios), 1.0, DRIFT_SHARE)

    def _alarm(self, now: float, rate_bps: float) -> None:
        """Call a full train; alarms that prove false become rarer."""
        if now < self._alarm_after:
            return
        self._ratios.clear()
        self._alarm_after = now + self._alarm_pause_s
        self._alarm_pause_s = min(MAX_ALARM_PAUSE_S, 2 * self._alarm_pause_s)
        self.alarms += 1
        self.suspected_bps, self._confirmed = rate_bps, False
        self.frames = _between(MIN_FRAMES, _frames(rate_bps, SPREAD_S), MAX_FRAMES)
        self.request(now)

    # Full trains.

    def _learn_full(self, now: float, result: TrainResult, lost: float) -> None:
        if result.rate_bps is not None:
            self.frames = _between(MIN_FRAMES, _frames(result.rate_bps, SPREAD_S), MAX_FRAMES)
            if not self._take(now, result.rate_bps * (1 - lost), result.dispersion_s):
                self.full_at = now
                return
        elif self._is_too_short(result) and self.frames < MAX_FRAMES:
            growth = min(MAX_GROWTH, max(1.5, SPREAD_S * 0.7 / max(result.dispersion_s, 1e-3)))
            self.frames = _between(MIN_FRAMES, self.frames * growth, MAX_FRAMES)
            self._again(now)
            return
        elif self._is_too_short(result) or self._overran(result):
            self._give_up(now, result)
            return
        elif self.suspected_bps is not None and self.hurry > 0:
            self._again(now)
            return
        elif self.estimator.value_bps is None:
            self.estimator.reason = result.reason or "the train told nothing"
        self.suspected_bps, self._confirmed = None, False
        self.full_at = now + self._pause_s()
        if self.estimator.value_bps is not None:
            self.check_at = min(self.check_at, now + self._check_pause_s())

    def _take(self, now: float, rate_bps: float, dispersion_s: float) -> bool:
        """Take a measured rate in; tell whether it needs no other train at once to confirm it.

        One that confirms a check train's alarm replaces the older ones: at once if the train was late (or
        early) by more than a busy machine could be to blame for, else if a second one says the same.
        """
        value, suspected = self.estimator.value_bps, self.suspected_bps
        changed = value is not None and not agree(rate_bps, value, self.estimator.agreement)
        if (
            value is None
            or not changed
            or suspected is None
            or not agree(rate_bps, suspected, CONFIRMS_SHARE)
        ):
            self.estimator.add(now, rate_bps)
            return True
        late_s = abs(dispersion_s - dispersion_s * rate_bps / value)
        if late_s < STALL_S and not self._confirmed:
            self._confirmed, self.suspected_bps = True, rate_bps
            return False
        self.estimator.replace(now, rate_bps)
        self._alarm_pause_s, self._alarm_after = ALARM_PAUSE_S, now
        return True

    def _again(self, now: float) -> None:
        self.hurry -= 1
        self.full_at = now if self.hurry > 0 else now + UNSETTLED_S

    @staticmethod
    def _is_too_short(result: TrainResult) -> bool:
        return result.rate_bps is None and 0 < result.dispersion_s < MIN_DISPERSION_S

    def _overran(self, result: TrainResult) -> bool:
        """Tell whether a train that had to grow was lost, but for a few, in buffers on its way."""
        return self.frames > OVERRUNS_FRAMES and 0 < result.markers < MIN_MARKERS

    def _give_up(self, now: float, result: TrainResult) -> None:
        """Say that the link is too fast for trains; short ones go on looking whether it still is."""
        self.frames = MIN_FRAMES
        self.full_at = now + TOO_FAST_S
        self.check_at = now + self.pace.check_interval_s
        self.suspected_bps = None
        self.estimator.forget(
            f"faster than a train of {MAX_FRAMES * FRAME_BYTES / 1e6:.1f} MB can tell "
            f"({result.reason}); configure it with PUT"
        )

    def _pause_s(self) -> float:
        """Return how long to wait until the next full train: a little while the estimate is not settled."""
        if self.estimator.unsettled and self.hurry > 0:
            self.hurry -= 1
            return UNSETTLED_S
        return self.pace.interval_s if self.estimator.value_bps is not None else self.pace.interval_s / 4


def _frames(rate_bps: float, spread_s: float) -> float:
    return rate_bps * spread_s / 8 / FRAME_BYTES


def _between(low: int, frames: float, high: int) -> int:
    return round(min(high, max(low, frames)))
