"""Who trains, from the first round to the last: one file per policy, one interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from orchestrator.core.errors import InvalidPolicy
from orchestrator.core.selection.all_resources import AllResources
from orchestrator.core.selection.deadline import Deadline, DeadlineOptions
from orchestrator.core.selection.elimination import Elimination, EliminationOptions, eliminations_per_epoch
from orchestrator.core.selection.interface import (
    Choice,
    OpenRound,
    Outcome,
    Policy,
    RoundPlan,
    RoundRecord,
    RoundStart,
    RoundView,
    Selection,
    Situation,
    Start,
)
from orchestrator.core.selection.oort import Oort, OortOptions
from orchestrator.core.selection.plan import Plan
from orchestrator.core.selection.planning import PlanOptions
from orchestrator.core.selection.random import RandomElimination

POLICIES = ("all", "eliminate", "random", "deadline", "oort", "plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """The parameters of every policy that has some; the others' are not looked at.

    `random` eliminates as many as `eliminate` does, and has its least number from there.
    """

    eliminate: EliminationOptions = field(default_factory=EliminationOptions)
    deadline: DeadlineOptions = field(default_factory=DeadlineOptions)
    oort: OortOptions = field(default_factory=OortOptions)
    plan: PlanOptions = field(default_factory=PlanOptions)


def make_policy(
    name: str, *, nodes: int, epochs: int, rng: Random, options: PolicyOptions | None = None
) -> Policy:
    """Make the policy called `name` for N = `nodes` at the start and T = `epochs`.

    `rng` gives a seed, once: what is drawn later depends on it and on the epoch only.

    Raises:
        InvalidPolicy: the name is unknown, or elimination's condition N > T > 1 does not hold.
    """
    chosen = options or PolicyOptions()
    seed = rng.getrandbits(32)
    match name:
        case "all":
            return AllResources()
        case "eliminate":
            return Elimination(
                per_epoch=eliminations_per_epoch(nodes, epochs),
                keep=chosen.eliminate.least_nodes(nodes),
                options=chosen.eliminate,
            )
        case "random":
            return RandomElimination(
                per_epoch=eliminations_per_epoch(nodes, epochs),
                keep=chosen.eliminate.least_nodes(nodes),
                seed=seed,
            )
        case "deadline":
            return Deadline(nodes=nodes, seed=seed, options=chosen.deadline)
        case "oort":
            return Oort(nodes=nodes, seed=seed, options=chosen.oort)
        case "plan":
            return Plan(options=chosen.plan)
    raise InvalidPolicy(f"policy {name!r} is unknown; known: {', '.join(POLICIES)}")


__all__ = [
    "POLICIES",
    "Choice",
    "DeadlineOptions",
    "EliminationOptions",
    "OortOptions",
    "OpenRound",
    "Outcome",
    "PlanOptions",
    "Policy",
    "PolicyOptions",
    "RoundPlan",
    "RoundRecord",
    "RoundStart",
    "RoundView",
    "Selection",
    "Situation",
    "Start",
    "eliminations_per_epoch",
    "make_policy",
]
