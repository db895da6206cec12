"""Where layers go: feasible rings, what is held already, and reasons why nothing can be placed."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from core_examples import a_model, a_network, a_node, a_path, a_problem

from orchestrator.core.cost import CostWeights, Problem, Workload, check_feasible
from orchestrator.core.errors import Infeasible, SearchLimit
from orchestrator.core.model import Network, Placement, Shard, Stage, network, unknown
from orchestrator.core.placement import beam, exact, solve, static

SOLVERS = (exact.solve, beam.solve)


def hundred_nodes(memory_bytes: int) -> Problem:
    rng = Random(3)
    names = [f"n{i:03d}" for i in range(100)]
    nodes = tuple(
        a_node(name, trusted=i % 5 == 0, compute_flops=rng.uniform(1e8, 2e9), memory_bytes=memory_bytes)
        for i, name in enumerate(names)
    )
    access = {name: rng.expovariate(20) for name in names}
    network = a_network(names, access_s=access)
    weights = CostWeights(latency=1.0, utilisation=0.0)
    return Problem(model=a_model(32), nodes=nodes, network=network, weights=weights, min_nodes=3)


def test_a_hundred_nodes_are_placed_by_beam_with_a_small_gap_where_memory_is_not_tight() -> None:
    problem = hundred_nodes(6_000_000)
    result = solve(problem)
    check_feasible(problem, result.placement)
    assert result.solver == "beam"
    assert result.gap_ratio is not None
    assert result.gap_ratio < 0.1


def test_where_memory_is_tight_a_much_wider_beam_finds_hardly_more() -> None:
    problem = hundred_nodes(1_500_000)
    narrow, wide = beam.solve(problem), beam.solve(problem, width=200)
    check_feasible(problem, narrow.placement)
    assert narrow.breakdown.phi <= wide.breakdown.phi * 1.01


def test_the_head_sits_on_a_trusted_node_and_min_nodes_are_used() -> None:
    placement = solve(a_problem(min_nodes=4)).placement
    assert placement.head in ("h1", "h2")
    assert len(placement.nodes) >= 4


def test_with_privacy_every_stage_sits_on_a_trusted_node() -> None:
    nodes = tuple(a_node(f"h{i}", trusted=i < 3, memory_bytes=3_000_000) for i in range(5))
    problem = a_problem(
        nodes=nodes, network=a_network([node.name for node in nodes]), all_trusted=True, min_nodes=2
    )
    assert set(solve(problem).placement.nodes) <= {"h0", "h1", "h2"}


def test_critical_layers_stay_on_trusted_nodes() -> None:
    problem = a_problem(model=a_model(8, critical=(3,)))
    placement = solve(problem).placement
    owner = next(stage.node for stage in placement.stages if stage.first_layer <= 3 < stage.end_layer)
    assert owner in ("h1", "h2")


def test_a_slow_link_is_routed_around() -> None:
    problem = a_problem()
    before = solve(problem).placement
    src, dst = before.hops[1]
    slow = a_path(src, dst, delay_s=0.5)
    paths = {**problem.network.paths, (src, dst): slow}
    after = solve(replace(problem, network=Network(taken_at_s=1.0, paths=paths))).placement
    assert (src, dst) not in after.hops


def test_what_a_node_holds_counts_once_where_the_new_shard_has_it_too() -> None:
    old = Shard(node="a", roles=("head", "stage"), first_layer=0, end_layer=2, previous="a", next="a")
    problem = Problem(
        model=a_model(3),
        nodes=(a_node("a", trusted=True, memory_bytes=703_000),),
        network=Network(taken_at_s=0.0),
        workload=Workload(context_tokens=10),
        held={"a": old},
    )
    whole = Placement(head="a", stages=(Stage(node="a", first_layer=0, end_layer=3),))
    for held in (old, replace(old, end_layer=1), replace(old, roles=("stage",)), replace(old, first_layer=1)):
        assert solve(replace(problem, held={"a": held})).placement == whole
    less = replace(problem, nodes=(a_node("a", trusted=True, memory_bytes=702_999),))
    with pytest.raises(Infeasible, match="needs 703,000 bytes, it has 702,999 free"):
        check_feasible(less, whole)
    with pytest.raises(Infeasible, match="needs 703,000 bytes, the 1 usable nodes together have"):
        solve(less)


def test_what_a_node_holds_beside_its_new_shard_counts_too() -> None:
    nodes = tuple(a_node(name, trusted=True, memory_bytes=502_000) for name in ("a", "b"))
    old = Shard(node="b", roles=("stage",), first_layer=0, end_layer=2, previous="a", next="a")
    problem = Problem(
        model=a_model(4),
        nodes=nodes,
        network=a_network(["a", "b"]),
        workload=Workload(context_tokens=10),
        held={"b": old},
    )
    other = Placement(
        head="a",
        stages=(Stage(node="a", first_layer=0, end_layer=1), Stage(node="b", first_layer=1, end_layer=4)),
    )
    with pytest.raises(
        Infeasible, match="b needs 603,000 bytes beside 201,000 it still holds, it has 502,000"
    ):
        check_feasible(problem, other)
    for find in SOLVERS:
        assert find(problem).placement.describe() == "head b; b[0:2] a[2:4]"
        with pytest.raises(Infeasible, match="no ring over a, b meets memory"):
            find(replace(problem, pinned_head="a"))


def test_when_a_node_dies_the_rest_keep_the_layers_they_have_and_take_more() -> None:
    nodes = tuple(a_node(name, trusted=name == "a", memory_bytes=603_000) for name in "abc")
    held = {
        "a": Shard(node="a", roles=("head", "stage"), first_layer=0, end_layer=1, previous="d", next="b"),
        "b": Shard(node="b", roles=("stage",), first_layer=1, end_layer=3, previous="a", next="c"),
        "c": Shard(node="c", roles=("stage",), first_layer=3, end_layer=5, previous="b", next="d"),
    }
    problem = Problem(
        model=a_model(6),
        nodes=nodes,
        network=a_network(["a", "b", "c"]),
        workload=Workload(context_tokens=10),
        held=held,
        pinned_head="a",
    )
    for find in SOLVERS:
        placement = find(problem).placement
        check_feasible(problem, placement)
        assert placement.head == "a"


def test_the_even_split_ignores_the_network_and_costs_more() -> None:
    problem = a_problem()
    even, best = static.solve(problem), solve(problem)
    assert even.placement.describe() == "head h1; h1[0:3] h2[3:6] h3[6:8]"
    assert even.breakdown.phi > best.breakdown.phi
    assert even.gap_ratio is None


def test_a_search_that_is_cut_short_says_so() -> None:
    with pytest.raises(SearchLimit, match="within 1 expansions over 6 nodes"):
        exact.solve(a_problem(), limit=1)


def all_nodes(problem: Problem, **values: object) -> Problem:
    return replace(problem, nodes=tuple(replace(node, **values) for node in problem.nodes))


def no_measurements(problem: Problem) -> Problem:
    gone = unknown("the controller is gone")
    paths = [replace(path, delay_s=gone) for path in problem.network.paths.values()]
    return replace(problem, network=network(0.0, paths))


@pytest.mark.parametrize(
    ("broken", "constraint", "message"),
    [
        (lambda p: replace(p, nodes=()), "no-nodes", "none is enrolled"),
        (lambda p: all_nodes(p, alive=False), "no-nodes", "node h1 is not alive; node h2 is not alive"),
        (
            lambda p: all_nodes(p, trusted=False),
            "trusted-head",
            "no node is trusted; usable, not trusted: h1",
        ),
        (
            lambda p: replace(p, nodes=(replace(p.nodes[0], alive=False), *p.nodes[2:])),
            "trusted-head",
            "no trusted node for the head .*: node h1 is not alive",
        ),
        (lambda p: replace(p, pinned_head="h5"), "pinned", "pinned to h5, .*those are h1, h2"),
        (lambda p: replace(p, nodes=p.nodes[:2]), "min-nodes", "min_nodes is 3 but 2 are usable: h1, h2"),
        (lambda p: replace(p, all_trusted=True), "min-nodes", "min_nodes is 3 but 2 are trusted and usable"),
        (
            lambda p: all_nodes(p, memory_bytes=250_000),
            "memory",
            "needs 1,802,400 bytes, the 6 usable nodes together have 1,500,000 free",
        ),
        (
            lambda p: replace(all_nodes(p, memory_bytes=210_000), model=a_model(1), min_nodes=2),
            "memory",
            "layer 0 alone needs 212,800 bytes, the largest node has 210,000",
        ),
        (
            lambda p: all_nodes(p, memory_bytes=90_000),
            "memory",
            "the head needs 100,000 bytes; free are h1 90,000",
        ),
        (lambda p: all_nodes(p, memory_bytes=None), "no-nodes", "node h1: its memory is unknown"),
        (
            lambda p: all_nodes(p, compute_flops=None),
            "no-nodes",
            "neither its layer time nor compute_flops and layer_overhead_s are known",
        ),
        (
            no_measurements,
            "paths",
            "30 of 30 paths between nodes cannot be used, as path h1 to h2: delay_s is unknown",
        ),
        (
            lambda p: replace(p, network=Network(taken_at_s=0.0)),
            "paths",
            "the path h1 to h2 has not been measured",
        ),
    ],
)
def test_what_cannot_be_placed_is_refused_with_the_binding_constraint(
    broken: object, constraint: str, message: str
) -> None:
    problem = broken(a_problem())  # type: ignore[operator]
    for find in SOLVERS:
        with pytest.raises(Infeasible, match=message) as caught:
            find(problem)
        assert caught.value.constraint == constraint


def test_the_head_goes_where_no_old_shard_is_in_its_way() -> None:
    nodes = tuple(a_node(name, trusted=True, memory_bytes=502_000) for name in ("a", "b"))
    old = Shard(node="a", roles=("stage",), first_layer=3, end_layer=4, previous="b", next="b")
    problem = Problem(
        model=a_model(4),
        nodes=nodes,
        network=a_network(["a", "b"]),
        workload=Workload(context_tokens=10),
        held={"a": old},
    )
    for find in SOLVERS:
        assert find(problem).placement.describe() == "head b; b[0:2] a[2:4]"
