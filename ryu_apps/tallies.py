"""What two counters of the same packets, one at either end, tell of those lost between them: pure.

Counters are read at different moments and at different ends, and packets take their time. So the sender's
counter is interpolated to the moment at which the packets left that the receiver had counted, and how far
that may be off goes into the tally's variance. Over a window only the two moments at its ends matter: what
is off in between cancels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from statistics import median

from ryu_apps.loss import NOTHING, WINDOW_S, Tally

WRAP = 1 << 64
KEEP_S = WINDOW_S + 15.0
MAX_READINGS = 256
MAX_PENDING = 8
END_MARKS = 5
"""So many readings together say how many packets were missing when a window began, and when it ended."""
LEAST_SHOWN = 12
MAD_TO_SD = 1.4826
MEDIAN_COST = 2.5
"""The variance of a median against that of a mean: pi/2, and more as neighbouring marks go together."""
DISPERSION_SMOOTHING = 1 / 8


@dataclass(frozen=True, slots=True)
class Count:
    """A count between two readings; `chance` of its variance grows with the packets' dispersion."""

    packets: float
    chance: float
    shift: float


class CounterSeries:
    """A counter that only grows, read now and then.

    One that goes back has been reset (the count goes on in a new epoch), unless it was near the top of its 64
    bits: then it wrapped.
    """

    def __init__(self) -> None:
        self._times: list[float] = []
        self._counts: list[int] = []
        self._last: tuple[int, float] | None = None
        self._mean = 0.0
        self._spread = 0.0
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
        self._counts.append(self._counts[-1] + grown)
        self._times.append(at)
        step = grown - self._mean if len(self._times) > 2 else 0.0
        self._mean = grown - step * (1 - DISPERSION_SMOOTHING)
        self._spread += (step * step - self._spread) * DISPERSION_SMOOTHING
        self._forget(at)
        return True

    def _grown(self, packets: int, duration_s: float) -> int | None:
        if self._last is None or duration_s < self._last[1]:
            return None
        grown = packets - self._last[0]
        if grown < 0 and self._last[0] >= WRAP // 2:
            grown += WRAP
        return grown if grown >= 0 else None

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
        return max(1.0, self._spread / self._mean) if self._mean > 0 else 1.0

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
        if span_s <= 0:
            return Count(float(self._counts[after]), 0.0, 0.0)
        grown = self._counts[after] - self._counts[before]
        share = (moment - self._times[before]) / span_s
        blurred = grown * min(1.0, timing_s / span_s)
        packets = self._counts[before] + share * grown
        return Count(packets, grown * share * (1 - share) + blurred, blurred * blurred)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Both counts at one moment."""

    at: float
    sent: Count
    received: int


class CounterPair:
    """The counters at both ends of one way that packets take."""

    def __init__(self) -> None:
        self.sent = CounterSeries()
        self.received = CounterSeries()
        self._pending: deque[tuple[float, int]] = deque(maxlen=MAX_PENDING)
        self._epochs = (0, 0)
        self._runs: deque[deque[_Mark]] = deque(maxlen=16)
        """Marks between which both counters went on without a reset."""

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
            self._runs.append(deque())
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
        run = self._runs[-1]
        run.append(mark)
        while len(run) > MAX_READINGS:
            run.popleft()
        while self._runs[0] is not run and (not self._runs[0] or self._runs[0][-1].at < mark.at - KEEP_S):
            self._runs.popleft()
        while run[0].at < mark.at - KEEP_S:
            run.popleft()

    def tally(self, now: float, window_s: float = WINDOW_S) -> Tally:
        """Return what was sent and lost in the last `window_s` seconds."""
        total = NOTHING
        for run in self._runs:
            total += self._between([mark for mark in run if mark.at >= now - window_s])
        return total

    def _between(self, marks: list[_Mark]) -> Tally:
        """Return the tally from the first few marks to the last few."""
        if len(marks) < 2:
            return NOTHING
        choices = min(END_MARKS, max(1, len(marks) // 4))
        first, last = marks[:choices], marks[-choices:]
        start, end = first[0].sent.packets, last[-1].sent.packets
        if end <= start:
            return NOTHING
        slope = (_missing(last) - _missing(first)) / max(1.0, _sent(last) - _sent(first))
        lost = _missing_at(last, end, slope) - _missing_at(first, start, slope)
        share = MEDIAN_COST / choices if choices > 2 else 1.0
        variance = share * (self._variance(marks, first) + self._variance(marks, last))
        return Tally(sent=end - start, lost=lost, variance=variance)

    def _variance(self, marks: list[_Mark], end: list[_Mark]) -> float:
        """Return the variance of what one mark of an end of the window says.

        It is what the marks there promise or, if that is more, what all marks of the window show: how far
        each is off the middle between its neighbours, a median, as one that is far off does not count either.
        """
        enough = len(marks) >= LEAST_SHOWN
        dispersion = 1.0 if enough else self.sent.dispersion
        promised = median(dispersion * mark.sent.chance + mark.sent.shift for mark in end)
        return max(promised, _shown(marks)) if enough else promised


def _shown(marks: list[_Mark]) -> float:
    missing = [mark.sent.packets - mark.received for mark in marks]
    off = [
        abs(middle - (before + after) / 2)
        for before, middle, after in zip(missing, missing[1:], missing[2:], strict=False)
    ]
    return (MAD_TO_SD * median(off)) ** 2 / 1.5


def _missing_at(marks: list[_Mark], sent: float, slope: float) -> float:
    """Return how many packets were missing when `sent` had been sent.

    The median of what each mark says, carried on by `slope` (lost per sent): one reading of a wrong moment,
    or in the middle of a burst, does no harm.
    """
    return median(mark.sent.packets - mark.received - slope * (mark.sent.packets - sent) for mark in marks)


def _missing(marks: list[_Mark]) -> float:
    return median(mark.sent.packets - mark.received for mark in marks)


def _sent(marks: list[_Mark]) -> float:
    return median(mark.sent.packets for mark in marks)
