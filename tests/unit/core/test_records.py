"""Records and criteria: what is written is complete and JSON-able."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from core_examples import a_node, a_path, known

from orchestrator.core.criteria import criteria_now, criteria_of
from orchestrator.core.decisions import Decision
from orchestrator.core.errors import InvalidValue
from orchestrator.core.jsonable import to_json
from orchestrator.core.model import Measurement, Network, network, unknown
from orchestrator.core.partition import transformer_graph
from orchestrator.core.reconfiguration import place
from orchestrator.core.scoring import Weights, score_nodes


def test_a_decision_survives_the_way_through_json() -> None:
    from core_examples import a_problem

    scores = score_nodes(criteria_now([a_node("h1")], Network(taken_at_s=0.0), {}), Weights())
    decision = Decision(
        kind="place",
        subject="d1",
        at_s=1.5,
        verdict="place",
        reason="because",
        inputs={"cost": float("inf")},
        scores=scores,
        alternatives=place(a_problem()).alternatives(),
    )
    document = json.loads(json.dumps(decision.to_json(), allow_nan=False))
    assert document["inputs"] == {"cost": None}
    assert document["scores"][0]["criteria"]["delay"]["note"].startswith(
        "the path orch to h1 has not been measured"
    )
    assert document["alternatives"][0]["terms"]["token_s"] > 0


def test_a_network_is_written_with_readable_pairs() -> None:
    document = to_json(network(3.0, [a_path("a", "b")]))
    assert isinstance(document, dict)
    assert list(document["paths"]) == ["a->b"]  # type: ignore[arg-type]


def test_what_has_no_json_form_is_refused_by_type() -> None:
    with pytest.raises(TypeError, match="bytes has no JSON form"):
        to_json(b"x")


def test_criteria_take_both_directions_and_leave_out_what_is_unknown() -> None:
    there = a_path("orch", "h1", delay_s=0.02, loss_ratio=0.01, available_bps=1e6, capacity_bps=8e6)
    back = a_path("h1", "orch", delay_s=0.04, loss_ratio=0.03, available_bps=2e6, capacity_bps=6e6)
    found = criteria_of("h1", a_node("h1", compute_flops=5e8), network(0.0, [there, back]), 2.5)
    assert (found.compute, found.bandwidth, found.time) == (5e8, 6e6, 2.5)
    assert found.delay == pytest.approx(0.03)
    assert found.loss == 0.03
    half = replace(back, delay_s=unknown("no probe came back"))
    assert criteria_of("h1", None, network(0.0, [there, half]), None).delay == pytest.approx(0.02)


def test_unknown_criteria_carry_their_reasons() -> None:
    found = criteria_of("h1", None, Network(taken_at_s=0.0), None)
    assert (found.compute, found.bandwidth, found.delay, found.loss, found.time) == (None,) * 5
    assert found.notes["compute"] == "the compute power of h1 is unknown"
    assert found.notes["time"] == "h1 reported no time"
    assert found.notes["loss"] == "the path orch to h1 has not been measured"


def test_bandwidth_falls_back_to_what_is_available_where_no_capacity_is_known() -> None:
    path = replace(a_path("orch", "h1", available_bps=3e6), capacity_bps=unknown("no train yet"))
    assert criteria_of("h1", None, network(0.0, [path]), None).bandwidth == 3e6


def test_a_node_that_is_busy_with_our_own_transfer_is_not_slow_for_that() -> None:
    there = a_path("orch", "h1", available_bps=0.0, capacity_bps=8e6, available_to_own_bps=7e6)
    back = a_path("h1", "orch", available_bps=8e6, capacity_bps=8e6, available_to_own_bps=8e6)
    found = criteria_of("h1", None, network(0.0, [there, back]), None)
    assert found.bandwidth == 7e6
    assert found.notes["bandwidth"] == "capacity less the traffic of others, orch to h1"
    score = score_nodes([found, replace(found, node="h2")], Weights(), "euclidean")[0]
    assert score.criteria["bandwidth"].note == found.notes["bandwidth"]


def test_where_own_traffic_is_not_told_apart_the_record_says_why() -> None:
    path = a_path("orch", "h1", available_bps=1e6, capacity_bps=8e6)
    found = criteria_of("h1", None, network(0.0, [path]), None)
    assert found.bandwidth == 8e6
    assert found.notes["bandwidth"] == "capacity, orch to h1; nothing is declared"


def test_a_measurement_is_a_finite_value_or_a_reason() -> None:
    assert known(0.0).value == 0.0
    with pytest.raises(InvalidValue, match="needs a reason"):
        Measurement(value=None)
    with pytest.raises(InvalidValue, match="unknown is None with a reason"):
        Measurement(value=float("inf"))


def test_a_transformer_graph_costs_its_layers_and_head() -> None:
    graph = transformer_graph(
        name="m",
        digest="d",
        layer_parameters=(100, 200),
        head_parameters=50,
        vocabulary=10,
        hidden=4,
        kv_width=2,
        critical_layers=(0,),
        sensitivities={1: 0.5},
    )
    first, second = graph.layers
    assert (first.parameter_bytes, first.flops_per_token, first.kv_bytes_per_token) == (400, 200.0, 16)
    assert (first.privacy_critical, second.privacy_critical, second.sensitivity) == (True, False, 0.5)
    assert (graph.head.parameter_bytes, graph.head.flops_per_token, graph.head.activation_bytes) == (
        200,
        80.0,
        16,
    )
    with pytest.raises(InvalidValue, match="model m has layers 0 to 0; there is no layer 3"):
        transformer_graph(
            name="m",
            digest="d",
            layer_parameters=(1,),
            head_parameters=1,
            vocabulary=1,
            hidden=1,
            kv_width=1,
            critical_layers=(3,),
        )
