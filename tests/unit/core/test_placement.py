"""Placement: the optimum against brute force, feasibility, and reasons why nothing can be placed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from random import Random

import pytest
from core_examples import a_model, a_network, a_node, a_path, a_problem, known
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.cost import CostWeights, Problem, Workload, check_feasible
from orchestrator.core.cost_tables import evaluate
from orchestrator.core.errors import Infeasible, InvalidValue, SearchLimit
from orchestrator.core.model import Network, PathMetrics, Placement, Shard, Stage, network, unknown
from orchestrator.core.partition import even_cuts, splits
from orchestrator.core.placement import beam, exact, solve, static

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


def test_a_lossy_path_costs_its_expected_retransmissions_and_a_hopeless_one_is_not_used() -> None:
    nodes = (a_node("a", trusted=True), a_node("b"))
    placement = Placement(head="a", stages=(Stage(node="b", first_layer=0, end_layer=2),))

    def with_loss(loss: float) -> Problem:
        paths = [a_path("a", "b", delay_s=0.05, loss_ratio=loss), a_path("b", "a", delay_s=0.05)]
        return Problem(model=a_model(2), nodes=nodes, network=network(0.0, paths))

    assert evaluate(with_loss(0.0), placement).retransmission_s == 0
    # One segment, RTO = 0.1 s round trip + 0.2 s: 0.1 * 0.3 / (1 - 0.2).
    assert evaluate(with_loss(0.1), placement).retransmission_s == pytest.approx(0.0375)
    with pytest.raises(Infeasible, match="path a to b loses 60%; usable is below 50%"):
        evaluate(with_loss(0.6), placement)


def test_the_latency_of_a_ring_is_the_sum_of_its_parts() -> None:
    nodes = (
        a_node("a", trusted=True, compute_flops=1e6, decode_layer_s=0.004, prefill_layer_s_per_token=0.001),
        a_node("b", compute_flops=1e6, layer_overhead_s=0.002),
    )
    paths = [
        a_path("a", "b", delay_s=0.03, available_bps=2048e3),
        a_path("b", "a", delay_s=0.01, available_bps=20480e3),
    ]
    problem = Problem(
        model=a_model(3),
        nodes=nodes,
        network=network(0.0, paths),
        workload=Workload(prompt_tokens=10, generated_tokens=100, context_tokens=10),
    )
    placement = Placement(
        head="a",
        stages=(Stage(node="a", first_layer=0, end_layer=1), Stage(node="b", first_layer=1, end_layer=3)),
    )
    cost = evaluate(problem, placement)
    assert cost.compute_s == pytest.approx(0.05 + 0.004 + 2 * (0.1 + 0.002))
    assert cost.delay_s == pytest.approx(0.04)
    assert cost.transmission_s == pytest.approx(0.001 + 0.0001)
    assert cost.token_s == pytest.approx(cost.compute_s + cost.delay_s + cost.transmission_s)
    prefill = 0.5 + (0.01 + 0.001) + 2 * (1.0 + 0.002) + 0.04 + 0.011
    assert cost.prefill_s == pytest.approx(prefill)
    assert cost.latency_s == pytest.approx(cost.token_s + prefill / 100)
    assert cost.utilisation == pytest.approx((1 / 3) ** 2 + (2 / 3) ** 2)
    assert cost.phi == pytest.approx(cost.latency_s + 0.1 * cost.utilisation)


def test_a_full_link_still_gives_a_flow_its_share() -> None:
    path = a_path("a", "b", available_bps=0.0, capacity_bps=1e6)
    nodes = (a_node("a", trusted=True), a_node("b"))
    problem = Problem(model=a_model(1), nodes=nodes, network=network(0.0, [path, a_path("b", "a")]))
    placement = Placement(head="a", stages=(Stage(node="b", first_layer=0, end_layer=1),))
    assert evaluate(problem, placement).transmission_s == pytest.approx(2048 / 1e5 + 2048 / 1e7)
    dead = replace(path, capacity_bps=unknown("none configured"))
    with pytest.raises(Infeasible, match="path a to b has no available bandwidth"):
        evaluate(replace(problem, network=network(0.0, [dead, a_path("b", "a")])), placement)


def test_placements_that_break_the_rules_of_a_ring_cannot_be_made() -> None:
    first, second = Stage(node="a", first_layer=0, end_layer=1), Stage(node="b", first_layer=1, end_layer=2)
    with pytest.raises(InvalidValue, match="the head's node b may run the first stage only"):
        Placement(head="b", stages=(first, second))
    with pytest.raises(InvalidValue, match="a node runs two stages: a, a"):
        Placement(head="a", stages=(first, replace(second, node="a")))
    with pytest.raises(InvalidValue, match="starts at layer 1, must start at 0"):
        Placement(head="a", stages=(second,))


def test_shards_know_their_neighbours_round_the_ring() -> None:
    placement = Placement(
        head="a",
        stages=(Stage(node="b", first_layer=0, end_layer=3), Stage(node="c", first_layer=3, end_layer=4)),
    )
    head, first, second = placement.shards()
    assert (head.roles, head.first_layer, head.end_layer) == (("head",), 0, 0)
    assert [(s.previous, s.node, s.next) for s in (head, first, second)] == [
        ("c", "a", "b"),
        ("a", "b", "c"),
        ("b", "c", "a"),
    ]
    assert placement.hops == (("a", "b"), ("b", "c"), ("c", "a"))
    alone = Placement(head="a", stages=(Stage(node="a", first_layer=0, end_layer=4),))
    assert alone.hops == ()
    assert alone.shards()[0].roles == ("head", "stage")
    assert (alone.shards()[0].previous, alone.shards()[0].next) == ("a", "a")


def test_every_split_is_contiguous_and_listed_once() -> None:
    found = list(splits(5, 3))
    assert len(found) == len(set(found)) == 6
    assert all(cuts[-1] == 5 and list(cuts) == sorted(set(cuts)) for cuts in found)
    assert even_cuts(8, 3) == (3, 6, 8)
    with pytest.raises(InvalidValue, match="8 layers cannot be cut into 9 stages"):
        even_cuts(8, 9)


def test_paths_refuse_values_that_cannot_be() -> None:
    with pytest.raises(InvalidValue, match=r"loss_ratio is 1\.5, must be at most 1"):
        PathMetrics(
            src="a",
            dst="b",
            delay_s=known(0.1),
            loss_ratio=known(1.5),
            capacity_bps=known(1.0),
            available_bps=known(1.0),
        )


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
