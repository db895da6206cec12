"""Ask more nodes than needed and keep the fastest (Bonawitz et al., MLSys 2019: 130 % of the goal count)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from orchestrator.core.ranges import check_above_zero, check_ranges
from orchestrator.core.selection.interface import Choice, Everybody, RoundPlan, RoundStart, RoundView


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineOptions:
    """Ask more than needed, keep the fastest (Bonawitz et al. 2019)."""

    share: float = 0.5
    """Of all nodes; so many are kept in a round (K of N)."""
    over_select: float = 1.3
    """So many times as many are asked."""
    deadline_s: float | None = None
    """The round closes then although fewer have answered; left out: it waits for K."""

    def __post_init__(self) -> None:
        check_ranges("deadline", self, over_select=(1, 100))
        check_above_zero("deadline", self, share=1)
        if self.deadline_s is not None:
            check_above_zero("deadline", self, deadline_s=inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline(Everybody):
    """Ask over_select * K nodes, drawn by lot each round; the fastest K make the round."""

    nodes: int
    seed: int
    options: DeadlineOptions = field(default_factory=DeadlineOptions)
    name: str = "deadline"

    def plan_round(self, start: RoundStart) -> RoundPlan:
        """Draw whom to ask among those that are free, in order of name."""
        keep = min(max(1, ceil(self.options.share * self.nodes)), max(1, len(start.candidates)))
        ask = min(ceil(self.options.over_select * keep), len(start.candidates))
        free = sorted(start.candidates)
        asked = {free[index] for index in lot(len(free), ask, seed=self.seed, epoch=start.epoch)}
        limit = self.options.deadline_s
        until = f", at most {limit:g} s" if limit is not None else ""
        return RoundPlan(
            participants=tuple(node for node in start.candidates if node in asked),
            quorum=keep,
            deadline_s=limit,
            reason=f"{ask} of {len(start.candidates)} free nodes are asked, the fastest {keep} kept{until}",
        )

    def choose(self, view: RoundView) -> Choice:
        """Keep all: who was late may be asked again."""
        late = f"; too late: {', '.join(sorted(view.late))}" if view.late else ""
        return Choice(eliminated=(), reason=f"{len(view.scores) - len(view.late)} were fast enough{late}")


def lot(nodes: int, count: int, *, seed: int, epoch: int) -> npt.NDArray[np.intp]:
    """Draw `count` indices of 0..nodes - 1 by lot; the draw depends on the arguments only."""
    return np.random.default_rng([seed % (1 << 64), epoch]).permutation(nodes)[:count]
