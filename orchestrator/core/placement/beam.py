"""Find a good placement fast, with a certified gap: the best partial rings of each length are kept.

The gap is certain but can be wide where memory forces many stages over a network with few good nodes: the
relaxed problem then visits those again and again. What is found is usually far better than the gap says.
"""

from __future__ import annotations

from heapq import nsmallest
from itertools import chain

from orchestrator.core.cost import Problem
from orchestrator.core.placement.diagnose import infeasibility
from orchestrator.core.placement.space import Partial, Result, Space

BEAM_WIDTH = 48


def solve(problem: Problem, *, cuts: tuple[int, ...] | None = None, width: int = BEAM_WIDTH) -> Result:
    """Find a cheap placement, keeping `width` partial rings per length; the result states its gap.

    Raises:
        Infeasible: none was found; the reason names the binding constraint, or `search` where there might
            still be one.
    """
    space = Space(problem, cuts=cuts)
    roots = space.roots()
    best: Partial | None = None
    frontier = roots[:width]
    while frontier:
        complete = [partial for partial in frontier if space.is_complete(partial)]
        best = min(chain(complete, [best] if best is not None else []), default=None)
        grown = chain.from_iterable(
            space.successors(partial, keep=width) for partial in frontier if not space.is_complete(partial)
        )
        frontier = nsmallest(width, (partial for partial in grown if best is None or partial < best))
    if best is None:
        raise infeasibility(problem, cuts=cuts)
    return space.result(best, lower_bound=roots[0].bound, solver="beam")
