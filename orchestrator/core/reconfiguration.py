"""Weigh a deployment's options: keep, redistribute (same cuts), re-split (Koch 2025, section 3.3).

Redistribution is tried first; the split is revised where that cannot meet the latency target or is not worth
its price.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.core.cost import Breakdown, Problem
from orchestrator.core.cost_tables import evaluate
from orchestrator.core.decisions import Alternative, Crossing
from orchestrator.core.errors import Infeasible
from orchestrator.core.model import Placement
from orchestrator.core.placement import Result, solve, static
from orchestrator.core.triggers import LATENCY, OPERATOR, Hysteresis, is_urgent, worth_moving

KEEP, REDISTRIBUTE, RESPLIT, EVEN = "keep", "redistribute", "resplit", "even"
COST_EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One thing that could be done: its placement and cost, or why it cannot be had."""

    name: str
    placement: Placement | None
    breakdown: Breakdown | None = None
    gap_ratio: float | None = None
    refusal: str | None = None
    constraint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The option taken and why, with all that were weighed."""

    verdict: str
    reason: str
    options: tuple[Option, ...]

    @property
    def placement(self) -> Placement | None:
        """Return the placement of the option taken, None if it has none."""
        return self._taken.placement

    @property
    def _taken(self) -> Option:
        return next(option for option in self.options if option.name == self.verdict)

    def alternatives(self) -> tuple[Alternative, ...]:
        """Return the options as they go into a decision record."""
        return tuple(_alternative(option, chosen=option.name == self.verdict) for option in self.options)


def place(problem: Problem) -> Choice:
    """Choose a first placement: the best split, with the even split beside it for comparison.

    Raises:
        Infeasible: no placement meets the constraints.
    """
    best = _solved(RESPLIT, solve(problem))
    even = _try_even(problem)
    assert best.breakdown is not None
    gain = ""
    if even.breakdown is not None and even.breakdown.phi > 0:
        gain = f", {1 - best.breakdown.phi / even.breakdown.phi:.0%} below the even split"
    reason = f"costs {best.breakdown.phi:.4g}{gain}"
    return Choice(verdict=RESPLIT, reason=reason, options=(best, even))


def reconsider(
    problem: Problem,
    current: Placement,
    found: Iterable[Crossing],
    *,
    latency_target_s: float,
    latency_s: float | None,
    hysteresis: Hysteresis,
) -> Choice:
    """Decide between keeping `current`, redistributing and re-splitting, after the crossings `found`.

    `latency_s` (the EWMA seen) stands for the present cost where that cannot be computed. Never raises for an
    infeasible option: it is listed with its reason.
    """
    crossings = tuple(found)
    keep = _priced(problem, current)
    options = (
        keep,
        _try_solve(REDISTRIBUTE, problem, current.cuts),
        _try_solve(RESPLIT, problem, None),
    )
    cost_now = _cost_now(problem, keep, crossings, latency_s)
    judged = {option.name: _judge(option, current, crossings, cost_now, hysteresis) for option in options[1:]}
    good = [option for option in options[1:] if judged[option.name][0] and option.breakdown is not None]
    if not good:
        reason = "; ".join(f"{name}: {why}" for name, (_, why) in judged.items())
        return Choice(verdict=KEEP, reason=reason, options=options)
    taken = _prefer(good, latency_target_s, by_cost=any(c.trigger == OPERATOR for c in crossings))
    return Choice(verdict=taken.name, reason=judged[taken.name][1], options=options)


def _prefer(good: list[Option], latency_target_s: float, *, by_cost: bool) -> Option:
    """Prefer redistribution where it meets the latency target, else the cheapest."""
    first = good[0]
    assert first.breakdown is not None
    if not by_cost and first.name == REDISTRIBUTE and first.breakdown.token_s <= latency_target_s:
        return first
    return min(good, key=lambda option: option.breakdown.phi if option.breakdown else float("inf"))


def _judge(
    option: Option,
    current: Placement,
    crossings: tuple[Crossing, ...],
    cost_now: float | None,
    hysteresis: Hysteresis,
) -> tuple[bool, str]:
    """Say whether an option is worth taking, and why (not)."""
    if option.breakdown is None:
        return False, option.refusal or "infeasible"
    if option.placement == current:
        return False, "nothing is better than the present placement"
    if {crossing.trigger for crossing in crossings} <= {OPERATOR}:
        return _judge_by_cost(option.breakdown, cost_now)
    if is_urgent(crossings):
        urgent = "; ".join(crossing.reason for crossing in crossings if is_urgent([crossing]))
        return True, f"{urgent}; now costs {option.breakdown.phi:.4g}"
    verdict = worth_moving(cost_now, option.breakdown, hysteresis)
    return verdict.worth, verdict.reason


def _judge_by_cost(candidate: Breakdown, cost_now: float | None) -> tuple[bool, str]:
    if cost_now is not None and candidate.phi >= cost_now - COST_EPSILON:
        return False, f"would cost {candidate.phi:.4g}, the present placement costs {cost_now:.4g}"
    before = "unknown" if cost_now is None else f"{cost_now:.4g}"
    return True, f"asked by the operator; the cost goes from {before} to {candidate.phi:.4g}"


def _cost_now(
    problem: Problem, keep: Option, crossings: tuple[Crossing, ...], latency_s: float | None
) -> float | None:
    if keep.breakdown is not None:
        return keep.breakdown.phi
    if latency_s is not None and any(crossing.trigger == LATENCY for crossing in crossings):
        return problem.weights.latency * latency_s
    return None


def _priced(problem: Problem, placement: Placement) -> Option:
    try:
        return Option(name=KEEP, placement=placement, breakdown=evaluate(problem, placement))
    except Infeasible as error:
        return _refused(KEEP, error, placement)


def _try_solve(name: str, problem: Problem, cuts: tuple[int, ...] | None) -> Option:
    try:
        return _solved(name, solve(problem, cuts=cuts))
    except Infeasible as error:
        return _refused(name, error)


def _try_even(problem: Problem) -> Option:
    try:
        return _solved(EVEN, static.solve(problem))
    except Infeasible as error:
        return _refused(EVEN, error)


def _solved(name: str, result: Result) -> Option:
    return Option(
        name=name, placement=result.placement, breakdown=result.breakdown, gap_ratio=result.gap_ratio
    )


def _refused(name: str, error: Infeasible, placement: Placement | None = None) -> Option:
    return Option(name=name, placement=placement, refusal=error.reason, constraint=error.constraint)


def _alternative(option: Option, *, chosen: bool) -> Alternative:
    breakdown = option.breakdown
    detail = option.placement.describe() if option.placement is not None else ""
    gap = {} if option.gap_ratio is None else {"gap_ratio": option.gap_ratio}
    return Alternative(
        name=option.name,
        cost=breakdown.phi if breakdown is not None else None,
        terms={**breakdown.terms(), **gap} if breakdown is not None else {},
        detail=detail,
        chosen=chosen,
        reason=option.refusal,
    )
