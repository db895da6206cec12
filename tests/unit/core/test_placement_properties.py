"""What holds of every placement, for any problem: compared with trying everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from random import Random

import pytest
from core_examples import a_model, a_node, a_path
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.cost import CostWeights, Problem, Workload, check_feasible
from orchestrator.core.cost_tables import evaluate
from orchestrator.core.errors import Infeasible
from orchestrator.core.model import Placement, Shard, Stage, network
from orchestrator.core.partition import even_cuts, splits
from orchestrator.core.placement import beam, exact

SOLVERS = (exact.solve, beam.solve)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small problems of every kind: asymmetric networks, tight memory, held shards, few trusted nodes."""
    seed = draw(st.integers(0, 10_000))
    rng = Random(seed)
    count = draw(st.integers(2, 5))
    layers = draw(st.integers(1, 5))
    names = [f"n{i}" for i in range(count)]
    paths = [
        a_path(
            src,
            dst,
            delay_s=rng.expovariate(20),
            loss_ratio=rng.choice([0.0, 0.01, 0.2]),
            available_bps=rng.uniform(1e5, 1e8),
        )
        for src in names
        for dst in names
        if src != dst and rng.random() < 0.9
    ]
    nodes = tuple(
        a_node(
            name,
            trusted=rng.random() < 0.5,
            compute_flops=rng.uniform(1e7, 1e9),
            memory_bytes=int(rng.uniform(2e5, 1.2e6)),
            cpu_utilisation=rng.random(),
        )
        for name in names
    )
    held = {"n0": Shard(node="n0", roles=("stage",), first_layer=0, end_layer=1, previous="n1", next="n1")}
    return Problem(
        model=a_model(layers, critical=(0,) if rng.random() < 0.3 else (), sensitivity=0.01),
        nodes=nodes,
        network=network(0.0, paths),
        weights=CostWeights(latency=1.0, utilisation=rng.random(), privacy=rng.random()),
        workload=Workload(prompt_tokens=8, generated_tokens=32, context_tokens=64),
        min_nodes=draw(st.integers(1, 3)),
        held=held if rng.random() < 0.3 else {},
    )


def every_placement(problem: Problem) -> Iterator[Placement]:
    names = [node.name for node in problem.nodes]
    layers = len(problem.model.layers)
    for count in range(1, min(layers, len(names)) + 1):
        for order in permutations(names, count):
            for cuts in splits(layers, count):
                starts = (0, *cuts[:-1])
                stages = tuple(
                    Stage(node=node, first_layer=first, end_layer=end)
                    for node, first, end in zip(order, starts, cuts, strict=True)
                )
                for head in names:
                    if head not in order[1:]:
                        yield Placement(head=head, stages=stages)


def least_cost(problem: Problem) -> float | None:
    costs = []
    for placement in every_placement(problem):
        try:
            costs.append(evaluate(problem, placement).phi)
        except Infeasible:
            continue
    return min(costs, default=None)


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_the_exact_solver_finds_what_trying_everything_finds(problem: Problem) -> None:
    expected = least_cost(problem)
    if expected is None:
        with pytest.raises(Infeasible):
            exact.solve(problem)
        return
    result = exact.solve(problem)
    assert result.breakdown.phi == pytest.approx(expected)
    assert result.gap_ratio == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), width=st.sampled_from([1, 4, 48]))
def test_the_beam_is_feasible_never_better_than_exact_and_its_gap_holds(problem: Problem, width: int) -> None:
    try:
        best = exact.solve(problem).breakdown.phi
    except Infeasible:
        with pytest.raises(Infeasible):
            beam.solve(problem, width=width)
        return
    if width < 48 and _finds_nothing(problem, width):
        return
    result = beam.solve(problem, width=width)
    check_feasible(problem, result.placement)
    assert result.breakdown.phi >= best - 1e-12
    assert result.lower_bound is not None
    assert result.lower_bound <= best + 1e-12
    if width == 48:
        assert result.breakdown.phi == pytest.approx(best)


def _finds_nothing(problem: Problem, width: int) -> bool:
    try:
        beam.solve(problem, width=width)
    except Infeasible:
        return True
    return False


@settings(max_examples=30, deadline=None)
@given(problem=problems(), data=st.data())
def test_the_order_in_which_nodes_are_listed_does_not_matter(problem: Problem, data: st.DataObject) -> None:
    shuffled = replace(problem, nodes=tuple(data.draw(st.permutations(problem.nodes))))
    for find in SOLVERS:
        outcomes = []
        for each in (problem, shuffled):
            try:
                outcomes.append(find(each).placement)
            except Infeasible as error:
                outcomes.append(error.constraint)
        assert outcomes[0] == outcomes[1]


@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_redistribution_keeps_the_cuts_and_is_never_cheaper_than_a_new_split(problem: Problem) -> None:
    cuts = even_cuts(len(problem.model.layers), min(2, len(problem.model.layers)))
    try:
        same = exact.solve(problem, cuts=cuts)
    except Infeasible:
        return
    assert same.placement.cuts == cuts
    assert same.breakdown.phi >= exact.solve(problem).breakdown.phi - 1e-12
