"""Keep how late packets were delivered: since the start, and recently. Pure; time is an argument."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

BOUNDS_MS = tuple(round(0.01 * 1.12**step, 5) for step in range(120))
"""Upper bounds of the bins, from 10 us to 7 s, 12 % apart: the precision of what is reported."""

WINDOW_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Lateness:
    """Percentiles of delivery minus due time; None where nothing was delivered."""

    packets: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class LatenessRecord:
    """Count deliveries in bins of lateness."""

    def __init__(self) -> None:
        self._total = [0] * (len(BOUNDS_MS) + 1)
        self._max_ms = 0.0
        self._seconds: deque[tuple[int, list[int]]] = deque()

    def add(self, late_s: float, packets: int, *, now_s: float) -> None:
        """Record that `packets` were delivered `late_s` after they were due."""
        late_ms = late_s * 1e3
        if late_ms > self._max_ms:
            self._max_ms = late_ms
        bin_number = bisect_left(BOUNDS_MS, late_ms)
        self._total[bin_number] += packets
        second = int(now_s)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append((second, [0] * len(self._total)))
            self._forget(second)
        self._seconds[-1][1][bin_number] += packets

    def since_start(self) -> Lateness:
        """Return the percentiles of everything."""
        return _summary(self._total, self._max_ms)

    def later_than(self, limit_ms: float) -> int:
        """Return how many packets were later than the first bin's bound at or above `limit_ms`."""
        return sum(self._total[bisect_left(BOUNDS_MS, limit_ms) + 1 :])

    def recent(self, *, now_s: float) -> Lateness:
        """Return the percentiles of the last `WINDOW_S` seconds; its maximum is a bin's bound."""
        self._forget(int(now_s))
        counts = [0] * len(self._total)
        for _, second in self._seconds:
            counts = [have + more for have, more in zip(counts, second, strict=True)]
        highest = max((number for number, count in enumerate(counts) if count), default=0)
        return _summary(counts, min(_bound_ms(highest), self._max_ms))

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - WINDOW_S:
            self._seconds.popleft()


def _summary(counts: list[int], max_ms: float) -> Lateness:
    packets = sum(counts)
    if not packets:
        return Lateness(packets=0, p50_ms=None, p99_ms=None, max_ms=None)
    return Lateness(
        packets=packets,
        p50_ms=min(_percentile(counts, packets, 0.50), max_ms),
        p99_ms=min(_percentile(counts, packets, 0.99), max_ms),
        max_ms=max_ms,
    )


def _percentile(counts: list[int], packets: int, share: float) -> float:
    wanted, seen = share * packets, 0
    for number, count in enumerate(counts):
        seen += count
        if seen >= wanted:
            return _bound_ms(number)
    return _bound_ms(len(counts) - 1)


def _bound_ms(number: int) -> float:
    return BOUNDS_MS[number] if number < len(BOUNDS_MS) else float("inf")
