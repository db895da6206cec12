"""Which nodes take part in the next epoch: one file per policy, one interface."""

from __future__ import annotations

from random import Random

from orchestrator.core.errors import InvalidPolicy
from orchestrator.core.selection.all_resources import AllResources
from orchestrator.core.selection.elimination import Elimination, eliminations_per_epoch
from orchestrator.core.selection.interface import Choice, Policy, Remembering, RoundView
from orchestrator.core.selection.random import RandomElimination

POLICIES = ("all", "eliminate", "random")


def make_policy(name: str, *, nodes: int, epochs: int, rng: Random) -> Policy:
    """Make the policy called `name` for N = `nodes` at the start and T = `epochs`.

    Raises:
        InvalidPolicy: the name is unknown, or elimination's condition N > T > 1 does not hold.
    """
    if name == "all":
        return AllResources()
    if name == "eliminate":
        return Elimination(per_epoch=eliminations_per_epoch(nodes, epochs))
    if name == "random":
        return RandomElimination(per_epoch=eliminations_per_epoch(nodes, epochs), rng=rng)
    raise InvalidPolicy(f"policy {name!r} is unknown; known: {', '.join(POLICIES)}")


__all__ = [
    "POLICIES",
    "Choice",
    "Policy",
    "Remembering",
    "RoundView",
    "eliminations_per_epoch",
    "make_policy",
]
