"""The search space that both solvers share: partial rings, their successors, and a lower bound.

A partial ring is a head and the stages so far. Its bound is what it costs already plus the least cost to go
in a relaxed problem where a node may be visited again; that problem is solved exactly by dynamic programming,
so the bound never exceeds the true cost, and it is tight wherever the relaxed optimum repeats no node.

Index legend: i, j nodes; h the head's node; l layers done so far; e end of the next stage; r how many more
distinct nodes `min_nodes` asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.core.cost import Breakdown, Floats, Problem, node_problem
from orchestrator.core.cost_tables import CostTables, evaluate
from orchestrator.core.model import NodeState, Placement, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A placement with its cost, and how far from the optimum it can be at most.

    `lower_bound` is a cost that no placement can undercut, None where none was computed. `solver` is `exact`,
    `beam` or `static`.
    """

    placement: Placement
    breakdown: Breakdown
    lower_bound: float | None
    solver: str

    @property
    def gap_ratio(self) -> float | None:
        """Return (phi - lower_bound) / lower_bound: 0 if proven optimal, None without a bound."""
        if self.lower_bound is None:
            return None
        gap = self.breakdown.phi - self.lower_bound
        return max(0.0, gap / self.lower_bound) if self.lower_bound > 0 else max(0.0, gap)


@dataclass(frozen=True, slots=True, order=True)
class Partial:
    """A ring in the making, ordered by bound, then by its nodes and cuts, so that ties fall the same way."""

    bound: float
    steps: tuple[tuple[int, int], ...]
    """(node, end layer) of each step; the first is the head with the end of the stage beside it, or 0."""
    spent: float

    @property
    def head(self) -> int:
        """Return the head's node."""
        return self.steps[0][0]

    @property
    def last(self) -> int:
        """Return the node of the last step."""
        return self.steps[-1][0]

    @property
    def done(self) -> int:
        """Return how many layers are placed."""
        return self.steps[-1][1]

    @property
    def used(self) -> frozenset[int]:
        """Return the nodes in the ring."""
        return frozenset(node for node, _ in self.steps)


class Space:
    """Partial rings of one problem over the nodes that can take part."""

    def __init__(self, problem: Problem, *, cuts: tuple[int, ...] | None = None) -> None:
        self.problem = problem
        self.tables = CostTables(problem, usable_nodes(problem))
        self.layer_count = self.tables.layer_count
        self._stage = self.tables.stage_phi()
        self._head = self.tables.head_phi()
        if cuts is not None:
            self._keep_cuts(cuts)
        self._hops = [self._hop(boundary) for boundary in range(self.layer_count + 1)]
        self._to_go: dict[int, Floats] = {}

    def roots(self) -> list[Partial]:
        """Return every way to begin: a head alone or with first layers, best bound first."""
        wanted = self._wanted(1)
        found = []
        for h, end in zip(*np.nonzero(np.isfinite(self._head)), strict=True):
            spent = float(self._head[h, end])
            bound = spent + float(self._cost_to_go(int(h))[end, h, wanted])
            if np.isfinite(bound):
                found.append(Partial(bound, ((int(h), int(end)),), spent))
        return sorted(found)

    def successors(self, partial: Partial, *, keep: int | None = None) -> Iterator[Partial]:
        """Yield every ring that has one stage more, or the `keep` of the best bounds; unordered."""
        layer, wanted = partial.done, self._wanted(len(partial.steps) + 1)
        reach = self._hops[layer][partial.last][:, None] + self._stage[:, layer, :]
        reach[list(partial.used), :] = np.inf
        bounds = partial.spent + reach + self._cost_to_go(partial.head)[:, :, wanted].T
        for j, end in zip(*_best(bounds, keep), strict=True):
            step = (int(j), int(end))
            yield Partial(float(bounds[j, end]), (*partial.steps, step), partial.spent + float(reach[j, end]))

    def is_complete(self, partial: Partial) -> bool:
        """Say whether all layers are placed."""
        return partial.done == self.layer_count

    def result(self, partial: Partial, *, lower_bound: float, solver: str) -> Result:
        """Turn a complete ring into a result; its cost is computed afresh."""
        placement = self._placement(partial)
        breakdown = evaluate(self.problem, placement)
        bound = min(lower_bound, breakdown.phi)
        return Result(placement=placement, breakdown=breakdown, lower_bound=bound, solver=solver)

    def _placement(self, partial: Partial) -> Placement:
        names, first, stages = self.tables.names, 0, []
        for node, end in partial.steps:
            if end > first:
                stages.append(Stage(node=names[node], first_layer=first, end_layer=end))
            first = end
        return Placement(head=names[partial.head], stages=tuple(stages))

    def _wanted(self, nodes: int) -> int:
        return max(0, self.problem.min_nodes - nodes)

    def _keep_cuts(self, cuts: tuple[int, ...]) -> None:
        keep = np.zeros((self.layer_count + 1, self.layer_count + 1), dtype=bool)
        for first, end in zip((0, *cuts[:-1]), cuts, strict=True):
            keep[first, end] = True
        self._stage[:, ~keep] = np.inf
        on_head = keep[0].copy()
        on_head[0] = True
        self._head[:, ~on_head] = np.inf

    def _hop(self, boundary: int) -> Floats:
        hop = self.tables.hop_phi(boundary).copy()
        np.fill_diagonal(hop, np.inf)
        return hop

    def _cost_to_go(self, h: int) -> Floats:
        """Return the relaxed least cost [l, j, r] to place the layers from l on and close the ring at h."""
        if h not in self._to_go:
            self._to_go[h] = self._relax(h)
        return self._to_go[h]

    def _relax(self, h: int) -> Floats:
        count, size = self.layer_count, len(self.tables.names)
        rest = np.full((count + 1, size, max(1, self.problem.min_nodes)), np.inf)
        rest[count, :, 0] = self._hops[count][:, h]
        rest[count, h, 0] = 0.0
        for layer in range(count - 1, -1, -1):
            for wanted in range(rest.shape[2]):
                after = rest[layer + 1 :, :, max(0, wanted - 1)].T
                onward = np.min(self._stage[:, layer, layer + 1 :] + after, axis=1)
                onward[h] = np.inf
                rest[layer, :, wanted] = np.min(self._hops[layer] + onward[None, :], axis=1)
        return rest


def _best(bounds: Floats, keep: int | None) -> tuple[npt.NDArray[np.intp], ...]:
    """Return the indices of the finite bounds, the `keep` smallest at least if there are more."""
    if keep is None or keep >= bounds.size:
        return np.nonzero(np.isfinite(bounds))
    worst = np.partition(bounds, keep - 1, axis=None)[keep - 1]
    return np.nonzero((bounds <= worst) & np.isfinite(bounds))


def usable_nodes(problem: Problem) -> tuple[NodeState, ...]:
    """Return the nodes that can take a shard at all; the head's pinned node stays even if it is drained."""
    return tuple(node for node in problem.nodes if _can_take_part(problem, node))


def _can_take_part(problem: Problem, node: NodeState) -> bool:
    if node_problem(node, problem.model) is None:
        return True
    return node.alive and node.draining and node.name == problem.pinned_head
