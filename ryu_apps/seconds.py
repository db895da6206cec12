"""Count what was sent and what arrived, second by second, such that any window is told at once: pure."""

from __future__ import annotations

from collections import deque


class Seconds:
    """Running totals at the end of each of the last `keep_s` seconds; a window is the difference of two."""

    def __init__(self, *, keep_s: int) -> None:
        self._keep_s = keep_s
        self._totals: deque[list[int]] = deque()
        """[sent, arrived] up to the end of a second, from `_first` on without a gap."""
        self._first = 0
        self._before = [0, 0]

    def __len__(self) -> int:
        """Return how many seconds are kept."""
        return len(self._totals)

    def sent(self, second: int) -> None:
        """Count one that was sent in a second."""
        self._reach(second)
        self._add(second, 0)

    def arrived(self, second: int) -> None:
        """Count the arrival of one that was sent in a second; too late once that second is forgotten."""
        self._add(second, 1)

    def between(self, after: int, until: int) -> tuple[int, int]:
        """Return how many were sent in the seconds `after` < s <= `until`, and how many of them arrived."""
        start, end = self._total(after), self._total(max(after, until))
        return end[0] - start[0], end[1] - start[1]

    def _reach(self, second: int) -> None:
        """Begin all seconds up to this one, and forget those that are too old."""
        if not self._totals or second - self._first >= 2 * self._keep_s:
            if self._totals:
                self._before = self._totals[-1]
            self._totals.clear()
            self._first = second
            self._totals.append(list(self._before))
        while self._first + len(self._totals) <= second:
            self._totals.append(list(self._totals[-1]))
        while len(self._totals) > self._keep_s:
            self._before = self._totals.popleft()
            self._first += 1

    def _add(self, second: int, which: int) -> None:
        if second >= self._first:
            for index in range(second - self._first, len(self._totals)):
                self._totals[index][which] += 1

    def _total(self, second: int) -> list[int]:
        if second < self._first or not self._totals:
            return self._before
        return self._totals[min(second - self._first, len(self._totals) - 1)]
