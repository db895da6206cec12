"""Triggers, hysteresis and the choice between keeping, redistributing and re-splitting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_examples import a_network, a_node, a_path, a_problem

from orchestrator.core.cost_tables import evaluate
from orchestrator.core.decisions import Crossing
from orchestrator.core.errors import InvalidValue
from orchestrator.core.model import Network, Placement, Stage
from orchestrator.core.placement import solve
from orchestrator.core.reconfiguration import Choice, place, reconsider
from orchestrator.core.triggers import (
    Ewma,
    Hysteresis,
    Thresholds,
    crossings,
    is_urgent,
    worth_moving,
)

RING = Placement(
    head="a",
    stages=(Stage(node="a", first_layer=0, end_layer=4), Stage(node="b", first_layer=4, end_layer=8)),
)
HIGH_LATENCY = Crossing(
    trigger="latency", value=0.9, threshold=0.15, unit="s", where="route", reason="a token takes 0.9 s"
)


def triggers_of(**values: object) -> list[tuple[str, str]]:
    nodes = values.pop("nodes", (a_node("a", trusted=True), a_node("b")))
    network = values.pop("network", a_network(["a", "b"], available_bps=1e8))
    latency = values.pop("latency_s", 0.1)
    found = crossings(RING, nodes, network, latency, Thresholds(), **values)  # type: ignore[arg-type]
    return [(crossing.trigger, crossing.where) for crossing in found]


def test_nothing_crosses_on_a_quiet_route() -> None:
    assert triggers_of() == []


def test_a_threshold_that_is_met_exactly_is_not_crossed() -> None:
    assert triggers_of(latency_s=0.150, network=a_network(["a", "b"], available_bps=50e6)) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"latency_s": 0.151}, [("latency", "route")]),
        ({"latency_s": None}, []),
        ({"nodes": (a_node("a"), a_node("b", cpu_utilisation=0.9))}, [("utilisation", "b")]),
        ({"nodes": (a_node("a"), a_node("b", cpu_utilisation=None))}, []),
        ({"nodes": (a_node("a"), a_node("b", alive=False))}, [("node-loss", "b")]),
        ({"nodes": (a_node("a"),)}, [("node-loss", "b")]),
        ({"nodes": (a_node("a"), a_node("b", draining=True))}, [("drain", "b")]),
        ({"nodes": (a_node("a", draining=True), a_node("b"))}, []),
        ({"private": True}, [("privacy", "b")]),
        (
            {"network": a_network(["a", "b"], available_bps=49e6)},
            [("bandwidth", "a->b"), ("bandwidth", "b->a")],
        ),
        ({"network": Network(taken_at_s=0.0)}, []),
    ],
)
def test_each_trigger_names_what_crossed(values: dict[str, object], expected: list[tuple[str, str]]) -> None:
    assert triggers_of(**values) == expected


def test_a_deployments_own_activations_do_not_trigger_its_move() -> None:
    busy = a_network(["a", "b"], available_bps=1e6, available_to_own_bps=99e6)
    assert triggers_of(network=busy) == []


def test_the_traffic_of_others_triggers_a_move_and_the_record_says_so() -> None:
    crowded = a_network(["a", "b"], available_bps=1e6, available_to_own_bps=40e6)
    nodes = (a_node("a", trusted=True), a_node("b"))
    found = crossings(RING, nodes, crowded, None, Thresholds())
    assert [crossing.value for crossing in found] == [40e6, 40e6]
    assert "capacity less the traffic of others" in found[0].reason


def test_failures_and_privacy_are_urgent_and_slowness_is_not() -> None:
    assert not is_urgent([HIGH_LATENCY])
    assert is_urgent([HIGH_LATENCY, replace(HIGH_LATENCY, trigger="node-loss")])
    assert is_urgent([replace(HIGH_LATENCY, trigger="privacy")])


def test_the_average_follows_its_samples() -> None:
    average = Ewma(weight=0.5).add(1.0)
    assert average.value == 1.0
    assert average.add(0.0).add(0.0).value == 0.25


def test_a_move_must_gain_the_margin_and_pay_for_itself() -> None:
    problem = a_problem()
    candidate = evaluate(problem, solve(problem).placement)
    phi = candidate.phi
    assert worth_moving(phi / 0.79, candidate, Hysteresis()).worth
    assert not worth_moving(phi / 0.81, candidate, Hysteresis()).worth
    dear = replace(candidate, prefill_s=100.0)
    refusal = worth_moving(phi / 0.5, dear, Hysteresis(horizon_tokens=10))
    assert not refusal.worth
    assert "less than the 100 s that the switch takes" in refusal.reason
    assert not worth_moving(None, candidate, Hysteresis()).worth


def weigh(network: Network | None = None, **values: object) -> Choice:
    problem = a_problem()
    current = solve(problem).placement
    changed = replace(problem, network=network or problem.network)
    defaults: dict[str, object] = {
        "latency_target_s": 10.0,
        "latency_s": 0.9,
        "hysteresis": Hysteresis(),
    }
    return reconsider(changed, current, [HIGH_LATENCY], **{**defaults, **values})  # type: ignore[arg-type]


def degraded(delay_s: float) -> Network:
    problem = a_problem()
    src, dst = solve(problem).placement.hops[1]
    paths = {**problem.network.paths, (src, dst): a_path(src, dst, delay_s=delay_s)}
    return Network(taken_at_s=1.0, paths=paths)


def test_high_latency_without_a_better_placement_keeps_the_present_one_and_says_why() -> None:
    choice = weigh()
    assert choice.verdict == "keep"
    assert choice.reason == (
        "redistribute: nothing is better than the present placement; "
        "resplit: nothing is better than the present placement"
    )
    assert [(item.name, item.chosen) for item in choice.alternatives()] == [
        ("keep", True),
        ("redistribute", False),
        ("resplit", False),
    ]


def test_a_degraded_hop_is_left_by_redistribution_first() -> None:
    current = solve(a_problem()).placement
    choice = weigh(degraded(0.4))
    assert choice.verdict == "redistribute"
    assert choice.placement is not None
    assert choice.placement.cuts == current.cuts
    assert choice.placement != current
    assert "the cost falls by" in choice.reason


def test_the_split_is_revised_where_redistribution_misses_the_target_and_costs_more() -> None:
    nodes = tuple(replace(node, memory_bytes=3_000_000) for node in a_problem().nodes)
    problem = replace(a_problem(), nodes=nodes, min_nodes=1)
    current = Placement(
        head="h1",
        stages=(Stage(node="h1", first_layer=0, end_layer=1), Stage(node="h3", first_layer=1, end_layer=8)),
    )
    choice = reconsider(
        problem,
        current,
        [HIGH_LATENCY],
        latency_target_s=0.01,
        latency_s=0.9,
        hysteresis=Hysteresis(),
    )
    assert choice.verdict == "resplit"
    assert choice.placement == solve(problem).placement


def test_a_small_gain_is_not_worth_a_move_but_the_operator_gets_it() -> None:
    network = degraded(0.03)
    assert weigh(network).verdict == "keep"
    operator = replace(HIGH_LATENCY, trigger="operator", value=None, threshold=None)
    problem = replace(a_problem(), network=network)
    current = solve(a_problem()).placement
    choice = reconsider(
        problem, current, [operator], latency_target_s=1.0, latency_s=None, hysteresis=Hysteresis()
    )
    assert choice.placement == solve(problem).placement
    assert choice.reason.startswith("asked by the operator; the cost goes from")


def test_an_infeasible_option_is_listed_with_its_reason() -> None:
    problem = replace(a_problem(), network=Network(taken_at_s=0.0))
    choice = reconsider(
        problem,
        solve(a_problem()).placement,
        [HIGH_LATENCY],
        latency_target_s=1.0,
        latency_s=0.9,
        hysteresis=Hysteresis(),
    )
    assert choice.verdict == "keep"
    for alternative in choice.alternatives():
        assert alternative.cost is None
        assert "has not been measured" in (alternative.reason or "")


def test_a_first_placement_is_recorded_beside_the_even_split() -> None:
    choice = place(a_problem())
    best, even = choice.alternatives()
    assert (best.name, best.chosen, even.name, even.chosen) == ("resplit", True, "even", False)
    assert best.cost is not None
    assert even.cost is not None
    assert best.cost < even.cost
    assert best.terms["gap_ratio"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latency_s": 0.0}, r"latency_s is 0\.0, must be above 0"),
        ({"utilisation": 1.1}, r"utilisation is 1\.1"),
        ({"cool_down_s": -1.0}, r"cool_down_s is -1\.0, must be at least 0"),
    ],
)
def test_impossible_thresholds_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        Thresholds(**values)
