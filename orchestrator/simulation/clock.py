"""A virtual clock: what is due next happens next; ties in the order in which they were asked for."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf

Action = Callable[[], None]


class Clock:
    """The time of a simulation, in seconds from 0, and what is to happen."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._asked = 0

    def after(self, delay_s: float, action: Action) -> None:
        """Have `action` called in `delay_s` seconds."""
        self.at(self.now_s + delay_s, action)

    def at(self, at_s: float, action: Action) -> None:
        """Have `action` called at `at_s`; what should have happened already happens next."""
        self._asked += 1
        heapq.heappush(self._due, (max(at_s, self.now_s), self._asked, action))

    @property
    def next_s(self) -> float:
        """Return when the next thing is due; infinite if nothing is."""
        return self._due[0][0] if self._due else inf

    def step(self) -> None:
        """Go to what is due next and do it."""
        self.now_s, _, action = heapq.heappop(self._due)
        action()
