"""Eliminate as many nodes as elimination does, but drawn by lot: the baseline that scores must beat."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from orchestrator.core.selection.interface import Choice, Everybody, RoundView, may_go


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomElimination(Everybody):
    """Eliminate `per_epoch` nodes by lot, never the last `keep`; for each one lost one comes back by lot."""

    per_epoch: int
    seed: int
    keep: int = 1
    name: str = "random"

    def choose(self, view: RoundView) -> Choice:
        """Draw among those that took part, by name: the draw depends on seed and epoch only."""
        rng = Random(f"{self.seed}/{view.epoch}")
        count = may_go(self.per_epoch, view.scores, self.keep)
        drawn = tuple(rng.sample(sorted(score.node for score in view.scores), count))
        back = tuple(rng.sample(sorted(view.standby), min(len(view.lost), len(view.standby))))
        reason = f"{', '.join(drawn) or 'nobody'}: drawn at random among {len(view.scores)}"
        if back:
            reason += f"; {', '.join(back)} drawn back for {', '.join(sorted(view.lost))}, which failed"
        return Choice(eliminated=drawn, readmitted=back, reason=reason)
