"""Eliminate the lowest-scoring nodes after each epoch (Pekel 2025, Algorithm 1 and Eq. 1: NE)."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.errors import InvalidPolicy
from orchestrator.core.selection.interface import Choice, RoundView, keep_one


def eliminations_per_epoch(nodes: int, epochs: int) -> int:
    """Return floor((N - 1) / (T - 1)) for N nodes at the start and T epochs (Eq. 1).

    Raises:
        InvalidPolicy: not N > T > 1.
    """
    if epochs <= 1:
        raise InvalidPolicy(
            f"epochs is {epochs}; elimination needs T > 1 epochs (Pekel 2025, Eq. 1): use 2 or more"
        )
    if nodes <= epochs:
        raise InvalidPolicy(
            f"epochs is {epochs} but there are only {nodes} nodes; elimination needs N > T > 1 "
            "(Pekel 2025, Eq. 1): use fewer epochs or more nodes"
        )
    return (nodes - 1) // (epochs - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elimination:
    """Eliminate `per_epoch` of the lowest scores, never the last node; ties fall by name, the later goes."""

    per_epoch: int
    name: str = "eliminate"

    def choose(self, view: RoundView) -> Choice:
        """Eliminate the worst of those that took part."""
        count = keep_one(self.per_epoch, view.scores)
        worst = tuple(score.node for score in view.scores[len(view.scores) - count :])
        return Choice(eliminated=worst, reason=self._explain(view, worst))

    def _explain(self, view: RoundView, worst: tuple[str, ...]) -> str:
        if not worst:
            return f"only {len(view.scores)} took part; the last node is never eliminated"
        scores = {score.node: score.score for score in view.scores}
        listed = ", ".join(f"{node} ({scores[node]:.3f})" for node in worst)
        return f"{listed}: the lowest of {len(scores)} scores; {self.per_epoch} per epoch by Eq. 1"
