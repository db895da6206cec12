"""Learning-rate schedules over a job's steps. No torch: both sides of the wire use them."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Warm up linearly over `warmup_steps`, then go to `final_ratio` of the rate at `total_steps`.

    `cosine` is SGDR's half cosine (Loshchilov and Hutter 2017, Eq. 5) without restarts.
    """

    kind: str = "constant"
    total_steps: int = 1
    warmup_steps: int = 0
    final_ratio: float = 0.0

    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied with at `step` (from 0); beyond the end: as there."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        length = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / length)
        falling = 1.0 - progress if self.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final_ratio + (1.0 - self.final_ratio) * falling
