"""When counters were read, and when they should be read next: pure.

What two counters tell of lost packets is only as good as what is known of the moments they were read at.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from statistics import median

MOST_LATE_S = 1.0
FORGET_S = 30.0
MANY = 64


class SwitchClock:
    """Tell when a switch read a counter, from how old it says that the counter is.

    A reply is late by what the switch and the controller's queue add to it. The age is of the moment of
    reading, by the switch's own clock: of its differences to the time of arrival lately the least is that
    of the reply which was held up least.
    """

    def __init__(self) -> None:
        self._differences: deque[tuple[float, float]] = deque()
        """(arrival, difference) of those that no newer one undercuts: the least comes first."""

    def read_at(self, now: float, age_s: float) -> float:
        """Return when a counter that is `age_s` old was read, whose reply came `now`.

        That is `now` for a switch that counts whole seconds only.
        """
        if age_s == int(age_s):
            return now
        difference = now - age_s
        if self._differences and difference - self._differences[0][1] > MOST_LATE_S:
            self._differences.clear()
        while self._differences and self._differences[-1][1] >= difference:
            self._differences.pop()
        self._differences.append((now, difference))
        while self._differences[0][0] < now - FORGET_S or len(self._differences) > MANY:
            self._differences.popleft()
        return age_s + self._differences[0][1]


class Rhythm:
    """Tell when something that comes regularly will come next."""

    KEPT = 5
    UNEVEN = 0.2
    """Intervals that differ by more than this share are no rhythm."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=self.KEPT)

    def came(self, at: float) -> None:
        """Note that it came."""
        self._times.append(at)

    def next_at(self) -> float | None:
        """Return when it will come next; None if it does not come regularly."""
        if len(self._times) < 3:
            return None
        times = list(self._times)
        intervals = sorted(after - before for before, after in pairwise(times))
        usual = median(intervals)
        return times[-1] + usual if abs(times[-1] - times[-2] - usual) <= self.UNEVEN * usual else None
