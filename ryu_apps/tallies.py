"""What two counters of the same packets, one at either end, tell of those lost between them: pure.

Counters are read at different moments and at different ends, and packets take their time. So the sender's
counter is interpolated to the moment at which the packets left that the receiver had counted, and how far
that may be off goes into the tally's variance: the nearer a reading is to that moment, the less. Over a
window only the two moments at its ends matter: what is off in between cancels.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass
from operator import attrgetter
from statistics import median

from ryu_apps.tally import NOTHING, WINDOW_S, Tally

WRAP = 1 << 64
KEEP_S = WINDOW_S + 15.0
MAX_READINGS = 256
MAX_PENDING = 8
END_MARKS = 5
MANY_MARKS = 25
MEDIAN_COST = 2.5
"""The variance of a median against that of a mean: pi/2, and more as neighbouring marks go together."""
LEAST_SHOWN = 12
SHOWN_SHARE = 0.75
SHOWN_SQUARE = 1.3233
"""That quantile of a squared normal variable of variance one."""
DISPERSION_SMOOTHING = 1 / 8
THIN_S = 0.7
"""Of marks so near to each other that tells the losses which says them best."""
SURE = 4.0
"""So many standard deviations, and LEAST_BACK packets, are no inaccuracy."""
LEAST_BACK = 3.0
LEAST_RATIO = 0.01
"""A loss that is taken for possible before any has been seen."""


@dataclass(frozen=True, slots=True)
class Count:
    """A count between two readings; `variance` (packets^2) is how far it may be off."""

    packets: float
    variance: float
    rate: float
    """Packets per second around that moment."""


class CounterSeries:
    """A counter that only grows, read now and then.

    One that goes back has been reset (the count goes on in a new epoch), unless it was near the top of its 64
    bits: then it wrapped.
    """

    def __init__(self) -> None:
        self._times: list[float] = []
        self._counts: list[int] = []
        self._last: tuple[int, float] | None = None
        self._mean_grown = 0.0
        self._mean_span_s = 0.0
        self._dispersion = 1.0
        self.epoch = 0

    def add(self, at: float, packets: int, duration_s: float = 0.0) -> bool:
        """Take a reading in; False for one that is not newer than the last.

        `duration_s` is how long the counter exists; a counter that is younger than it was is another one.
        """
        if self._times and at <= self._times[-1]:
            return False
        grown = self._grown(packets, duration_s)
        self._last = packets, duration_s
        if grown is None:
            self._times, self._counts = [at], [0]
            self.epoch += 1
            return True
        self._disperse(grown, at - self._times[-1])
        self._counts.append(self._counts[-1] + grown)
        self._times.append(at)
        self._forget(at)
        return True

    def _grown(self, packets: int, duration_s: float) -> int | None:
        if self._last is None or duration_s < self._last[1]:
            return None
        grown = packets - self._last[0]
        if grown < 0 and self._last[0] >= WRAP // 2:
            grown += WRAP
        return grown if grown >= 0 else None

    def _disperse(self, grown: int, span_s: float) -> None:
        """Note how far a count is off what the rate had promised, against what chance makes of it."""
        if self._mean_span_s > 0:
            expected = max(1.0, self._mean_grown / self._mean_span_s * span_s)
            off = (grown - expected) ** 2 / expected
            self._dispersion += (off - self._dispersion) * DISPERSION_SMOOTHING
            self._mean_grown += (grown - self._mean_grown) * DISPERSION_SMOOTHING
            self._mean_span_s += (span_s - self._mean_span_s) * DISPERSION_SMOOTHING
        else:
            self._mean_grown, self._mean_span_s = float(grown), span_s

    def _forget(self, now: float) -> None:
        old = bisect_left(self._times, now - KEEP_S)
        old = max(old, len(self._times) - MAX_READINGS)
        if old > 32:
            del self._times[:old], self._counts[:old]

    @property
    def last_at(self) -> float | None:
        """The time of the last reading."""
        return self._times[-1] if self._times else None

    @property
    def dispersion(self) -> float:
        """How much burstier than by chance (1.0) the packets come: variance over mean of counts."""
        return max(1.0, self._dispersion)

    def at(self, moment: float, *, timing_s: float) -> Count | None:
        """Return the count at a moment between two readings, None outside of them.

        `timing_s` is the standard deviation of the readings' times.
        """
        after = bisect_left(self._times, moment)
        if after == len(self._times) or (after == 0 and moment < self._times[0]):
            return None
        if after == 0:
            after = min(1, len(self._times) - 1)
        before = max(0, after - 1)
        span_s = self._times[after] - self._times[before]
        rate = self._rate(moment, timing_s)
        blurred = rate * timing_s
        grown = self._counts[after] - self._counts[before]
        share = (moment - self._times[before]) / span_s if span_s > 0 else 1.0
        chance = self.dispersion * blurred + min(self.dispersion, grown) * grown * share * (1 - share)
        return Count(self._counts[before] + share * grown, chance + blurred * blurred, rate)

    def _rate(self, moment: float, timing_s: float) -> float:
        """Return the packets per second between the readings next to a moment that is known to `timing_s`."""
        first = max(0, bisect_right(self._times, moment - 2 * timing_s) - 1)
        last = min(len(self._times) - 1, bisect_left(self._times, moment + 2 * timing_s))
        span_s = self._times[last] - self._times[first]
        return (self._counts[last] - self._counts[first]) / span_s if span_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Mark:
    """Both counts at one moment."""

    at: float
    sent: Count
    received: int

    @property
    def missing(self) -> float:
        """How many packets had been lost, but for a constant."""
        return self.sent.packets - self.received


class CounterPair:
    """The counters at both ends of one way that packets take."""

    def __init__(self) -> None:
        self.sent = CounterSeries()
        self.received = CounterSeries()
        self._pending: deque[tuple[float, int]] = deque(maxlen=MAX_PENDING)
        self._epochs = (0, 0)
        self._runs: deque[list[_Mark]] = deque(maxlen=16)
        """Marks between which both counters went on without a reset."""
        self._doubted: _Mark | None = None
        self._timing: tuple[float, float] = (0.0, 0.0)

    def add_received(self, at: float, packets: int, duration_s: float = 0.0) -> None:
        """Take a reading of the receiver's counter in."""
        if self.received.add(at, packets, duration_s):
            count = self.received.at(at, timing_s=0.0)
            self._pending.append((at, 0 if count is None else round(count.packets)))

    def match(self, *, delay_s: float, timing_s: float) -> None:
        """Match the receiver's readings with the sender's of `delay_s` before, as far as those go."""
        if (self.sent.epoch, self.received.epoch) != self._epochs:
            self._epochs = self.sent.epoch, self.received.epoch
            while len(self._pending) > 1:
                self._pending.popleft()
            self._runs.append([])
            self._doubted = None
        while self._pending and self._runs:
            at, received = self._pending[0]
            last_at = self.sent.last_at
            if last_at is None or at - delay_s > last_at:
                break
            self._pending.popleft()
            sent = self.sent.at(at - delay_s, timing_s=timing_s)
            if sent is not None:
                self._mark(_Mark(at, sent, received))

    def _mark(self, mark: _Mark) -> None:
        """Take a mark in.

        One that says that lost packets came back, or that far more are lost than before, waits for the next
        one: a counter that was read at another moment than was believed says so once, a loss goes on.
        """
        run = self._runs[-1]
        if run and mark.at - run[-1].at < THIN_S and _is_worse(mark, run[-1]):
            return
        while len(run) > 1 and mark.at - run[-1].at < THIN_S and _is_worse(run[-1], mark):
            run.pop()
        doubted, self._doubted = self._doubted, None
        if run and doubted is None and (_comes_back(run[-1], mark) or _jumps(run, mark)):
            self._doubted = mark
            return
        if doubted is not None:
            _settle(run, doubted, mark)
        run.append(mark)
        while self._runs[0] is not run and (not self._runs[0] or self._runs[0][-1].at < mark.at - KEEP_S):
            self._runs.popleft()
        del run[: max(len(run) - MAX_READINGS, bisect_left(run, mark.at - KEEP_S, key=_AT))]

    def tally(self, now: float, window_s: float = WINDOW_S) -> Tally:
        """Return what was sent and lost in `window_s` seconds up to the last mark, if that is in them."""
        newest = next((run[-1].at for run in reversed(self._runs) if run), None)
        if newest is None or newest < now - window_s:
            return NOTHING
        total = NOTHING
        for run in self._runs:
            if run and run[-1].at > newest - window_s:
                total += self._between(run[_nearest(run, newest - window_s) :])
        return total

    def _between(self, marks: list[_Mark]) -> Tally:
        """Return the tally from the first mark to the last; where there are many, a few at each end vote.

        A vote would hide a loss that has just changed: a short window goes by its last mark alone.
        """
        choices = END_MARKS if len(marks) >= MANY_MARKS else 1
        first, last = marks[:choices], marks[-choices:]
        start, end = first[0].sent.packets, last[-1].sent.packets
        if end <= start:
            return NOTHING
        slope = (last[0].missing - first[0].missing) / max(1.0, last[0].sent.packets - start)
        lost = _missing_at(last, end, slope) - _missing_at(first, start, slope)
        carried = end - last[choices // 2].sent.packets + first[choices // 2].sent.packets - start
        chance = carried * max(0.0, slope * (1 - slope))
        variance = self._variance(first) + self._variance(last) + chance
        return Tally(sent=end - start, lost=lost, variance=variance)

    def _variance(self, marks: list[_Mark]) -> float:
        timing = self._shown_timing()
        each = median(max(mark.sent.variance, timing * mark.sent.rate**2) for mark in marks)
        return each * (MEDIAN_COST / len(marks) if len(marks) > 1 else 1.0)

    def _shown_timing(self) -> float:
        """Return the variance of the moments (s^2) that the marks themselves show; 0 while there are few."""
        run = self._runs[-1]
        if len(run) < LEAST_SHOWN:
            return 0.0
        if self._timing[0] != run[-1].at:
            self._timing = run[-1].at, _timing_of(run)
        return self._timing[1]


_AT = attrgetter("at")


def _missing_at(marks: list[_Mark], sent: float, slope: float) -> float:
    """Return how many packets were missing when `sent` had been sent.

    The median of what each mark says, carried on by `slope` (lost per sent): one reading of a wrong moment,
    or in the middle of a burst, does no harm.
    """
    return median(mark.missing - slope * (mark.sent.packets - sent) for mark in marks)


def _nearest(run: list[_Mark], at: float) -> int:
    after = bisect_left(run, at, key=_AT)
    if after == 0 or after == len(run):
        return min(after, len(run) - 1)
    return after if run[after].at - at <= at - run[after - 1].at else after - 1


def _is_worse(mark: _Mark, other: _Mark) -> bool:
    """Tell whether a mark knows its moment far less well than another one."""
    return mark.sent.variance > 1 + 2 * other.sent.variance


def _comes_back(before: _Mark, after: _Mark) -> bool:
    """Tell whether so many fewer packets are missing than before that a reading must have been wrong."""
    doubt = SURE * math.sqrt(before.sent.variance + after.sent.variance)
    return before.missing - after.missing > LEAST_BACK + doubt


def _jumps(run: list[_Mark], mark: _Mark) -> bool:
    """Tell whether far more packets are missing since the last mark than the loss so far makes likely."""
    sent = mark.sent.packets - run[-1].sent.packets
    before = run[-1].sent.packets - run[0].sent.packets
    ratio = min(1.0, max(LEAST_RATIO, (run[-1].missing - run[0].missing) / before if before > 0 else 0.0))
    chance = max(0.0, sent) * ratio * (1 - ratio)
    doubt = SURE * math.sqrt(run[-1].sent.variance + mark.sent.variance + chance)
    return mark.missing - run[-1].missing - max(0.0, sent) * ratio > LEAST_BACK + doubt


def _settle(run: list[_Mark], doubted: _Mark, following: _Mark) -> None:
    """Add a doubted mark to the run, or take out what was wrong, now that another one has followed."""
    if not _comes_back(run[-1], doubted):
        if not _comes_back(doubted, following):
            run.append(doubted)
    elif _comes_back(run[-1], following):
        if len(run) > 1 and not _comes_back(run[-2], doubted):
            run.pop()
        run.append(doubted)


def _timing_of(run: list[_Mark]) -> float:
    """Return the variance of the marks' moments: how far each is off the line between its neighbours.

    What chance makes of the losses on either side is taken off (the variance of a Brownian bridge). It is the
    upper quartile, weighted by packets: idle times do not count, nor do a few marks that are far off, but
    bursts in which every fifth mark was made do.
    """
    seen = []
    for before, middle, after in zip(run, run[1:], run[2:], strict=False):
        sent = after.sent.packets - before.sent.packets
        if sent <= 0 or middle.sent.rate <= 0:
            continue
        share = (middle.sent.packets - before.sent.packets) / sent
        lost = after.missing - before.missing
        off = middle.missing - before.missing - share * lost
        chance = max(0.0, lost * (1 - lost / sent)) * share * (1 - share)
        spread = 1 + share * share + (1 - share) ** 2
        seen.append(((off * off / SHOWN_SQUARE - chance) / spread / middle.sent.rate**2, sent))
    seen.sort()
    left = SHOWN_SHARE * sum(sent for _, sent in seen)
    for timing, sent in seen:
        left -= sent
        if left <= 0:
            return max(0.0, timing)
    return 0.0
