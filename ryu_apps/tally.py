"""Packets that were sent and how many of them were lost: pure.

Counts are packets, times Unix seconds, ratios in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60
"""Packets older than this do not count."""
Z = 1.959964
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Packets that were sent and how many of them were lost.

    `variance` is that of `lost` (packets^2) beyond chance: what is not known of which packets were counted.
    Counters at both ends that do not agree on the moment may make `lost` a little negative.
    """

    sent: float = 0.0
    lost: float = 0.0
    variance: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            sent=self.sent + other.sent,
            lost=self.lost + other.lost,
            variance=self.variance + other.variance,
        )

    @property
    def ratio(self) -> float:
        """The share that was lost, 0 when nothing was sent."""
        return min(1.0, max(0.0, self.lost / self.sent)) if self.sent > 0 else 0.0

    @property
    def trials(self) -> float:
        """How many packets, each lost or not by chance alone, would tell as much.

        The variance of the ratio, ratio (1 - ratio) / sent, grows by `variance` / sent^2. The ratio in it is
        drawn towards one half (Agresti and Coull 1998), so that none lost is not taken for no doubt, and is
        at least what the variance leaves possible.
        """
        if self.sent <= 0:
            return 0.0
        drawn = (self.ratio * self.sent + 2) / (self.sent + 4)
        ratio = min(0.5, max(drawn, Z * math.sqrt(self.variance) / self.sent))
        return self.sent / (1 + self.variance / (self.sent * ratio * (1 - ratio)))


NOTHING = Tally()

Tallies = Callable[[float], Tally]
"""What was sent and lost within so many seconds before now."""
