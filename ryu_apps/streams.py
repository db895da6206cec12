"""What the prober sends to, and what it knows of it: pure, time is an argument."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from ryu_apps.loss import LossEstimator
from ryu_apps.stats import DelayEstimator

LATE_S = 1.0
BEST_SPAN_S = 10.0
BEST_SPANS = 30


@dataclass(slots=True, eq=False)
class Target:
    """Something to send to, again and again, until it is closed."""

    rate: Callable[[float], float]
    send: Callable[[float], None]
    closed: bool = False


@dataclass(slots=True, eq=False)
class Stream:
    """The numbered probes of one link direction (or of one host's round trips) and what they tell."""

    target: Target
    delay: DelayEstimator
    loss: LossEstimator
    extra_rate: float = 0.0
    """Probes per second beyond the configured ones, as the link deserves and the limit allows."""
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    queued_from: float = 0.0
    queued_until: float = 0.0

    def queues(self, now: float, until: float) -> None:
        """Note that a train of ours fills the queue of the link: probes sent meanwhile wait behind it."""
        self.queued_from, self.queued_until = now, until

    def add_delay(self, now: float, delay_s: float, *, sent_at: float) -> None:
        """Take a probe's delay in, unless a train of ours made it wait."""
        if not self.queued_from <= sent_at <= self.queued_until:
            self.delay.add(now, max(0.0, delay_s))


class SwitchEcho:
    """Keep the round trips of a switch's control channel; their median is what it adds to a probe."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._samples: deque[float] = deque(maxlen=11)
        self._best: deque[tuple[int, float]] = deque(maxlen=BEST_SPANS)
        """The quickest round trip of each span of BEST_SPAN_S."""
        self.round_trip_s: float | None = None
        """The median round trip, None before the first."""

    def add(self, now: float, round_trip_s: float) -> None:
        """Take one round trip in."""
        if not 0 <= round_trip_s < LATE_S:
            return
        self._samples.append(round_trip_s)
        self.round_trip_s = median(self._samples)
        span = int(now // BEST_SPAN_S)
        if self._best and self._best[-1][0] == span:
            self._best[-1] = span, min(round_trip_s, self._best[-1][1])
        else:
            self._best.append((span, round_trip_s))

    @property
    def late_s(self) -> float:
        """By how much the median round trip is longer than the quickest of the last minutes."""
        if self.round_trip_s is None:
            return 0.0
        return self.round_trip_s - min(best_s for _, best_s in self._best)
