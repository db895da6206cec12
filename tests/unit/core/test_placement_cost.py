"""What a ring costs in time, and which rings and values there can be at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_examples import a_model, a_node, a_path, known

from orchestrator.core.cost import Problem, Workload
from orchestrator.core.cost_tables import evaluate
from orchestrator.core.errors import Infeasible, InvalidValue
from orchestrator.core.model import PathMetrics, Placement, Stage, network, unknown
from orchestrator.core.partition import even_cuts, splits


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
