"""Guided participant selection: Lai et al., "Oort", OSDI 2021 (Algorithm 1 and sections 4.2 to 4.4).

A node's utility is what its data teaches times a penalty for being slow:

    Util(i) = |B_i| * sqrt(mean of squared losses) * (T / t_i)^alpha  if t_i > T, else without the last factor

Those that were tried are drawn by utility, a shrinking share of the round explores those that were not,
faster ones first. The preferred duration T is relaxed when the utility that rounds collect falls (the
pacer). Two things differ from the paper and are stated here: utilities are divided by their cap before the
staleness bonus is added, because a bonus of a few tenths means nothing beside |B| * loss; and T is a
quantile of the durations seen, not a multiple of a step in seconds, because rounds here last from one second
to hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, log

import numpy as np
import numpy.typing as npt

from orchestrator.core.jsonable import Json
from orchestrator.core.ranges import check_above_zero, check_ranges
from orchestrator.core.selection.forecast import fill, forecasts
from orchestrator.core.selection.interface import (
    Choice,
    Everybody,
    RoundPlan,
    RoundRecord,
    RoundStart,
    RoundView,
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OortOptions:
    """Guided participant selection (Lai et al., OSDI 2021); the paper's parameters."""

    share: float = 0.5
    """Of all nodes; so many make a round (K of N)."""
    over_select: float = 1.3
    """So many times as many are asked."""
    alpha: float = 2.0
    """How much a duration beyond the preferred one counts against a node."""
    epsilon: float = 0.9
    """Share of a round that explores, at first."""
    epsilon_factor: float = 0.98
    """Of `epsilon`, per round."""
    epsilon_least: float = 0.2
    cut_off: float = 0.95
    """Confidence: of the least utility that is drawn, who is above this share of it may be drawn, too."""
    clip: float = 0.95
    """Quantile at which utilities are capped."""
    pace: float = 0.5
    """First quantile of the durations seen that the preferred one is."""
    pace_step: float = 0.1
    """Added to `pace` when the utility of the last `window` rounds fell below that of those before."""
    window: int = 5
    most_picks: int = 1000
    """After so many rounds a node is not drawn by utility any more."""

    def __post_init__(self) -> None:
        shares = ("epsilon", "epsilon_factor", "epsilon_least", "cut_off", "clip", "pace", "pace_step")
        check_ranges("oort", self, **dict.fromkeys(shares, (0, 1)))
        check_ranges("oort", self, over_select=(1, 100), alpha=(0, 100))
        check_ranges("oort", self, window=(1, 10_000), most_picks=(1, 1_000_000))
        check_above_zero("oort", self, share=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What is known of one that took part: utility of its data, duration, last round (from 1), picks."""

    utility: float
    seconds: float
    last: int
    picks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Oort(Everybody):
    """Draw participants by statistical and system utility, and explore."""

    nodes: int
    seed: int
    options: OortOptions = field(default_factory=OortOptions)
    name: str = "oort"

    def plan_round(self, start: RoundStart) -> RoundPlan:
        """Draw whom to ask; the fastest K of them make the round."""
        options, names = self.options, sorted(start.candidates)
        keep = min(max(1, ceil(options.share * self.nodes)), max(1, len(names)))
        ask = min(ceil(options.over_select * keep), len(names))
        rng = np.random.default_rng([self.seed, start.epoch])
        history = start.situation.history
        tried = remember(history)
        known = [node for node in names if node in tried]
        new = [node for node in names if node not in tried]
        epsilon = max(options.epsilon_least, options.epsilon * options.epsilon_factor**start.epoch)
        explore = min(len(new), max(round(epsilon * ask), ask - len(known)))
        prefer_s = preferred_s(history, options)
        exploited = self._exploit(known, tried, ask - explore, start.epoch + 1, prefer_s, rng)
        explored = self._explore(new, explore, start, rng)
        asked = {*exploited, *explored}
        inputs: dict[str, Json] = {
            "epsilon": epsilon,
            "preferred_s": prefer_s,
            "exploited": list(exploited),
            "explored": list(explored),
        }
        pace = "no duration known" if prefer_s is None else f"T {prefer_s:.1f} s"
        return RoundPlan(
            participants=tuple(node for node in start.candidates if node in asked),
            quorum=keep,
            reason=f"{len(exploited)} by utility, {len(explored)} explored ({pace}); the fastest {keep} kept",
            inputs=inputs,
        )

    def choose(self, view: RoundView) -> Choice:
        """Keep all: whoever is not drawn may be drawn in a later round."""
        late = f"; too late: {', '.join(sorted(view.late))}" if view.late else ""
        return Choice(eliminated=(), reason=f"{len(view.scores) - len(view.late)} made the round{late}")

    def _exploit(
        self,
        known: Sequence[str],
        tried: dict[str, Tried],
        count: int,
        round_number: int,
        prefer_s: float | None,
        rng: np.random.Generator,
    ) -> list[str]:
        fresh = [node for node in known if tried[node].picks < self.options.most_picks]
        pool = fresh if len(fresh) >= count else list(known)
        if count < 1 or not pool:
            return []
        values = utilities([tried[node] for node in pool], round_number, prefer_s, self.options)
        least = self.options.cut_off * float(np.sort(values)[-min(count, len(values))])
        admitted = np.flatnonzero(values >= least)
        return [pool[index] for index in admitted[draw(values[admitted], count, rng)]]

    def _explore(
        self, new: Sequence[str], count: int, start: RoundStart, rng: np.random.Generator
    ) -> list[str]:
        if count < 1:
            return []
        seconds = fill(forecasts(new, start.situation))
        speeds = 1 / np.maximum(np.array([seconds[node] for node in new]), 1e-9)
        return [new[index] for index in draw(speeds, count, rng)]


def remember(history: Sequence[RoundRecord]) -> dict[str, Tried]:
    """Read off the history what is known of each that was asked; a late one has its former utility."""
    tried: dict[str, Tried] = {}
    for record in history:
        for node, outcome in record.outcomes.items():
            before = tried.get(node)
            utility, seconds = (before.utility, before.seconds) if before else (0.0, 0.0)
            if outcome.answered and outcome.loss is not None:
                utility = outcome.samples * abs(outcome.loss)
            seconds = outcome.seconds if outcome.answered else max(seconds, outcome.seconds)
            picks = before.picks + 1 if before else 1
            tried[node] = Tried(utility=utility, seconds=seconds, last=record.epoch + 1, picks=picks)
    return tried


def utilities(
    tried: Sequence[Tried], round_number: int, prefer_s: float | None, options: OortOptions
) -> Floats:
    """Return utilities [n]: clipped at a quantile and scaled to it, staleness added, slow ones penalised."""
    raw = np.array([one.utility for one in tried])
    cap = float(np.quantile(raw, options.clip)) or float(raw.max()) or 1.0
    last = np.array([one.last for one in tried])
    values = np.minimum(raw, cap) / cap + np.sqrt(0.1 * log(max(round_number, 1)) / last)
    if prefer_s is None:
        return np.asarray(values)
    seconds = np.maximum(np.array([one.seconds for one in tried]), 1e-9)
    return np.asarray(values * np.where(seconds > prefer_s, (prefer_s / seconds) ** options.alpha, 1.0))


def preferred_s(history: Sequence[RoundRecord], options: OortOptions) -> float | None:
    """Replay the pacer and return the preferred duration T; None before anybody answered."""
    pace, window = options.pace, options.window
    collected = [
        sum(o.samples * abs(o.loss) for o in record.outcomes.values() if o.answered and o.loss is not None)
        for record in history
    ]
    for end in range(2 * window, len(collected) + 1, window):
        if sum(collected[end - 2 * window : end - window]) > sum(collected[end - window : end]):
            pace = min(1.0, pace + options.pace_step)
    seconds = [one.seconds for one in remember(history).values() if one.seconds > 0]
    return float(np.quantile(seconds, pace)) if seconds else None


def draw(weights: Floats, count: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Draw `count` indices without replacement, by weight (Efraimidis and Spirakis 2006)."""
    floor = max(float(weights.max()) * 1e-9, 1e-300)
    keys = np.log(1 - rng.random(len(weights))) / np.maximum(weights, floor)
    return np.argsort(-keys, kind="stable")[:count]
