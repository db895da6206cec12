"""Find the optimum for certain: best-first search over ordered distinct nodes with an admissible bound.

The first complete ring that comes off the queue is optimal, because no other can end below its own bound.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from orchestrator.core.cost import Problem
from orchestrator.core.errors import SearchLimit
from orchestrator.core.placement.diagnose import infeasibility
from orchestrator.core.placement.space import Partial, Result, Space

EXPANSION_LIMIT = 20_000
State = tuple[int, frozenset[int], int, int]


def solve(problem: Problem, *, cuts: tuple[int, ...] | None = None, limit: int = EXPANSION_LIMIT) -> Result:
    """Find the cheapest placement.

    Raises:
        Infeasible: none meets the constraints; the reason names the binding one.
        SearchLimit: `limit` expansions did not suffice.
    """
    space = Space(problem, cuts=cuts)
    queue = space.roots()
    heapify(queue)
    seen: dict[State, float] = {}
    for _ in range(limit):
        if not queue:
            raise infeasibility(problem, cuts=cuts)
        partial = heappop(queue)
        if space.is_complete(partial):
            return space.result(partial, lower_bound=partial.bound, solver="exact")
        for successor in space.successors(partial):
            if _is_new(seen, successor):
                heappush(queue, successor)
    raise SearchLimit(f"no proof of the optimum within {limit} expansions over {len(problem.nodes)} nodes")


def _is_new(seen: dict[State, float], partial: Partial) -> bool:
    """Note a partial ring; say whether it beats all that end in the same place over the same nodes."""
    state = (partial.head, partial.used, partial.last, partial.done)
    if seen.get(state, float("inf")) <= partial.spent:
        return False
    seen[state] = partial.spent
    return True
