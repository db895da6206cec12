"""Place without looking, as a baseline: even split over the first nodes by name, a trusted one as head."""

from __future__ import annotations

from orchestrator.core.cost import Problem
from orchestrator.core.cost_tables import evaluate
from orchestrator.core.errors import Infeasible
from orchestrator.core.model import Placement, Stage
from orchestrator.core.partition import even_cuts
from orchestrator.core.placement.diagnose import infeasibility
from orchestrator.core.placement.space import Result, usable_nodes


def solve(problem: Problem) -> Result:
    """Split evenly over as few nodes as `min_nodes` and memory allow, whatever network and devices are like.

    Raises:
        Infeasible: no such split meets the constraints; the reason is that of the last one tried.
    """
    nodes = sorted(usable_nodes(problem), key=lambda node: node.name)
    heads = [node.name for node in nodes if node.trusted and problem.pinned_head in (None, node.name)]
    if not heads:
        raise infeasibility(problem)
    names = [heads[0], *(node.name for node in nodes if node.name != heads[0])]
    return _first_that_fits(problem, names)


def _first_that_fits(problem: Problem, names: list[str]) -> Result:
    layers, refusal = len(problem.model.layers), infeasibility(problem)
    for count in range(problem.min_nodes, min(layers, len(names)) + 1):
        placement = _even(names[:count], layers)
        try:
            breakdown = evaluate(problem, placement)
        except Infeasible as error:
            refusal = error
            continue
        return Result(placement=placement, breakdown=breakdown, lower_bound=None, solver="static")
    raise refusal


def _even(names: list[str], layers: int) -> Placement:
    cuts = even_cuts(layers, len(names))
    starts = (0, *cuts[:-1])
    stages = tuple(
        Stage(node=node, first_layer=first, end_layer=end)
        for node, first, end in zip(names, starts, cuts, strict=True)
    )
    return Placement(head=names[0], stages=stages)
