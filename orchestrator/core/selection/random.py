"""Eliminate as many nodes as elimination does, but drawn by lot: the baseline that scores must beat."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from orchestrator.core.selection.interface import Choice, RoundView, keep_one


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomElimination:
    """Eliminate `per_epoch` nodes drawn with `rng`, never the last node."""

    per_epoch: int
    rng: Random
    name: str = "random"

    def choose(self, view: RoundView) -> Choice:
        """Draw among those that took part, in order of name, so that the draw depends on the seed only."""
        count = keep_one(self.per_epoch, view.scores)
        drawn = tuple(self.rng.sample(sorted(score.node for score in view.scores), count))
        listed = ", ".join(drawn) or "nobody"
        return Choice(eliminated=drawn, reason=f"{listed}: drawn at random among {len(view.scores)}")
