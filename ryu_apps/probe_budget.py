"""Say how many measuring packets per second are worth their cost now: pure, time is an argument.

More are sent step by step as long as somebody wants them, and at once fewer when the controller takes too
much of a processor, comes late to its own turns, or has the switches answer late (additive increase,
multiplicative decrease, as in RFC 5681, section 3.1).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

START_RATE = 400.0
LEAST_RATE = 100.0
"""Packets per second to begin with, below which processor time does not press them, which then goes to other
things; what makes things late presses them down to the least.
"""
MORE = 25.0
"""Packets per second that are added each second."""
LESS = 0.85
"""What is left of the rate after a second that cost too much."""
CPU_WINDOW_S = 5.0
LEAST_WINDOW_S = 1.5
"""The share of a processor is told over the last seconds at one rate, and over so many at least."""
NEAR = 0.9
"""Nothing is added where the processor's share comes so near to what is allowed."""
LATE_TURN_S = 0.02
LATE_SWITCH_S = 0.004


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What measuring costs, at Unix time `at`: processor seconds since the start, and how late things are.

    `late_turn_s` is by how much the prober's turns came late (median of the last second), `late_switch_s` by
    how much the switches' echo replies are later than at best (median switch), 0 where that is not known.
    """

    at: float
    cpu_s: float
    late_turn_s: float
    late_switch_s: float


class ProbeBudget:
    """Own the rate that all measuring packets together may have."""

    def __init__(self, *, most_rate: float, cpu_share: float) -> None:
        self._most_rate = most_rate
        self._cpu_share = cpu_share
        self._spent: deque[Cost] = deque()
        self.rate = min(START_RATE, most_rate)
        """Packets per second, all together."""
        self.reason: str | None = None
        """Why it is not more, None while nothing holds it down."""

    def note(self, cost: Cost, *, wanted_rate: float) -> None:
        """Take in what the last second cost, and decide upon the next one; called once a second."""
        self._spent.append(cost)
        while self._spent[0].at < cost.at - CPU_WINDOW_S:
            self._spent.popleft()
        share = self._share()
        late, busy = self._late(cost), share is not None and share > self._cpu_share
        if late is not None or (busy and self.rate > START_RATE):
            self.reason = late or self._says(share)
            least = LEAST_RATE if late is not None else START_RATE
            self.rate = max(min(least, self._most_rate), LESS * self.rate)
            self._spent = deque([cost])
        elif share is not None:
            near = share > NEAR * self._cpu_share and self.rate >= START_RATE
            self.reason = self._says(share) if near else None
            if not near and wanted_rate > self.rate:
                self.rate = min(self._most_rate, self.rate + MORE)

    def _share(self) -> float | None:
        """Return what the controller takes of a processor core since the last cut, None too soon after it."""
        first, last = self._spent[0], self._spent[-1]
        span_s = last.at - first.at
        return (last.cpu_s - first.cpu_s) / span_s if span_s >= LEAST_WINDOW_S else None

    def _late(self, cost: Cost) -> str | None:
        if cost.late_turn_s > LATE_TURN_S:
            return f"the controller's turns come {cost.late_turn_s * 1e3:.0f} ms late"
        if cost.late_switch_s > LATE_SWITCH_S:
            return f"the switches answer {cost.late_switch_s * 1e3:.1f} ms later than at best"
        return None

    def _says(self, share: float | None) -> str:
        return f"the controller takes {share or 0.0:.2f} of a processor core, {self._cpu_share:g} are allowed"
