"""Eliminate the lowest-scoring nodes after each epoch (Pekel 2025, Algorithm 1 and Eq. 1: NE)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from orchestrator.core.decisions import NodeScore
from orchestrator.core.errors import InvalidPolicy, InvalidValue
from orchestrator.core.ranges import check_ranges
from orchestrator.core.selection.interface import (
    Choice,
    Everybody,
    OpenRound,
    RoundPlan,
    RoundStart,
    RoundView,
    may_go,
)
from orchestrator.core.selection.progress import NOISE_NODES, least_nodes

WAITS = ("certain", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class EliminationOptions:
    """How elimination waits, when it ends, and when it takes a node back."""

    wait: Literal["certain", "all"] = "certain"
    """`all`: for every update, as Pekel 2025 says; `certain`: until none could change who is eliminated."""
    least_efficiency: float = 0.0
    """Of the progress of all nodes per round; it ends before less is left. 0: at the last node (Eq. 1)."""
    noise_nodes: float = NOISE_NODES
    """Gradient noise scale in samples of an average node, for `least_efficiency`."""
    rejoin_margin: float = 0.1
    """By so much must a score exceed the lowest that stays."""
    rejoin_after: int = 2
    """Epochs that a node is out at least."""
    rejoin_limit: int = 2
    """Times that a node may come back."""

    def __post_init__(self) -> None:
        if self.wait not in WAITS:
            raise InvalidValue(f"eliminate: wait is {self.wait!r}; known: {', '.join(WAITS)}")
        check_ranges("eliminate", self, least_efficiency=(0, 1), noise_nodes=(0, 1e6), rejoin_margin=(0, 1))
        check_ranges("eliminate", self, rejoin_after=(1, 10_000), rejoin_limit=(0, 10_000))

    def least_nodes(self, nodes: int) -> int:
        """Return how many of `nodes` are never eliminated."""
        return least_nodes(nodes, noise_nodes=self.noise_nodes, least_efficiency=self.least_efficiency)


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
class Elimination(Everybody):
    """Eliminate `per_epoch` of the lowest scores, never the last `keep`; of equals the later name goes."""

    per_epoch: int
    keep: int = 1
    options: EliminationOptions = field(default_factory=EliminationOptions)
    name: str = "eliminate"

    def plan_round(self, start: RoundStart) -> RoundPlan:
        """Have all train; wait for all but those that the epoch eliminates, if `wait` is `certain`."""
        count = len(start.candidates)
        last = start.epoch == start.situation.epochs - 1
        if self.options.wait == "all" or last or count <= self.keep:
            return RoundPlan(participants=start.candidates, reason=f"all {count} train and are waited for")
        quorum = count - min(self.per_epoch, count - self.keep)
        reason = f"all {count} train; the {count - quorum} lowest are not waited for once they are certain"
        return RoundPlan(participants=start.candidates, quorum=quorum, reason=reason)

    def may_close(self, view: OpenRound) -> str | None:
        """Close once every node still awaited is among the lowest whatever it may still send.

        Its time can only grow, which lowers its own score and raises the others': what it is now, it stays.
        """
        out = {score.node for score in self._worst(view.scores)}
        if not view.awaited <= out:
            return None
        names = ", ".join(sorted(view.awaited))
        return f"{names} will be eliminated whatever still comes: the time taken so far makes them the lowest"

    def choose(self, view: RoundView) -> Choice:
        """Eliminate the worst of those that took part; take back who has recovered.

        Those that the round was closed without go first, even if measurements since would have others go:
        they still train, and who stays must be free for the next epoch.
        """
        worst = self._worst(view.scores, first=view.late)
        reason = self._explain(view, worst)
        back = self._recovered(view, {score.node for score in worst})
        if back:
            reason += f"; {', '.join(back)} recovered and may train again"
        return Choice(eliminated=tuple(score.node for score in worst), readmitted=tuple(back), reason=reason)

    def _worst(
        self, scores: tuple[NodeScore, ...], first: frozenset[str] = frozenset()
    ) -> tuple[NodeScore, ...]:
        """Return the lowest, in the order of their scores; those of `first` before any other."""
        ordered = sorted(scores, key=lambda score: score.node in first)
        lowest = {score.node for score in ordered[len(scores) - may_go(self.per_epoch, scores, self.keep) :]}
        return tuple(score for score in scores if score.node in lowest)

    def _recovered(self, view: RoundView, out: set[str]) -> list[str]:
        """List who is better than the lowest that stays by the margin, out long enough, and not too often."""
        among_all = {score.node: score.score for score in view.pool}
        staying = [among_all[s.node] for s in view.scores if s.node not in out and s.node in among_all]
        if not staying:
            return []
        least = min(staying) + self.options.rejoin_margin
        return [
            node
            for node in sorted(view.standby, key=lambda name: (-among_all.get(name, 0.0), name))
            if among_all.get(node, -1.0) >= least and self._may_return(node, view)
        ][: self.per_epoch]

    def _may_return(self, node: str, view: RoundView) -> bool:
        gone = [epoch for epoch, choice in enumerate(view.choices) if node in choice.eliminated]
        returns = sum(node in choice.readmitted for choice in view.choices)
        since = view.epoch - gone[-1] if gone else view.epoch + 1
        return since >= self.options.rejoin_after and returns < self.options.rejoin_limit

    def _explain(self, view: RoundView, worst: tuple[NodeScore, ...]) -> str:
        if not worst:
            least = "the last node is" if self.keep == 1 else f"the last {self.keep} are"
            return f"only {len(view.scores)} took part; {least} never eliminated"
        listed = ", ".join(f"{score.node} ({score.score:.3f})" for score in worst)
        late = [score.node for score in worst if score.node in view.late]
        lowest = f"{listed}: the lowest of {len(view.scores)} scores"
        if late:
            lowest += f" ({', '.join(late)} when the round was closed)"
        return f"{lowest}; {self.per_epoch} per epoch by Eq. 1"
