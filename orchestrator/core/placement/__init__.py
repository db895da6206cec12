"""Find a placement of least cost: `solve` takes the solver that suits the size."""

from __future__ import annotations

from orchestrator.core.cost import Problem
from orchestrator.core.errors import SearchLimit
from orchestrator.core.placement import beam, exact
from orchestrator.core.placement.space import Result

EXACT_NODES = 16
"""Up to so many nodes the exact solver is asked first; beyond, or past its limit, the beam."""


def solve(problem: Problem, *, cuts: tuple[int, ...] | None = None) -> Result:
    """Find the cheapest placement; with `cuts` (the stages' ends) the layers are cut exactly there.

    Without `cuts` this is Koch 2025, Eq. 7 (`resplit`); with the present ones it is `redistribute`.

    Raises:
        Infeasible: no placement meets the constraints; the reason names the binding one.
    """
    if len(problem.nodes) <= EXACT_NODES:
        try:
            return exact.solve(problem, cuts=cuts)
        except SearchLimit:
            pass
    return beam.solve(problem, cuts=cuts)


__all__ = ["EXACT_NODES", "Result", "solve"]
