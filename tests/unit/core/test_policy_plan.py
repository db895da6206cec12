"""Planning: whom it begins with, what it weighs, how it revises, and what it does when it knows nothing."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_worlds import a_round, names, scored, situation

from orchestrator.core.errors import InvalidValue
from orchestrator.core.selection import (
    OpenRound,
    PlanOptions,
    Policy,
    PolicyOptions,
    RoundStart,
    RoundView,
    Situation,
    Start,
    make_policy,
)
from orchestrator.core.selection.planning import Pool, cost_of, costs

FREE = PlanOptions(least_efficiency=0.0)


def plan(**options: float) -> Policy:
    chosen = PolicyOptions(plan=PlanOptions(**options))
    return make_policy("plan", nodes=8, epochs=10, rng=Random(0), options=chosen)


def rates(*mbps: float) -> dict[str, float]:
    return {f"h{i}": rate * 1e6 for i, rate in enumerate(mbps, start=1)}


def test_it_begins_without_the_nodes_that_would_set_the_pace() -> None:
    world = situation(rates(20, 20, 20, 20, 20, 20, 1, 0.5))
    chosen = plan().select(Start(nodes=names(8), situation=world))
    assert chosen.nodes == ("h1", "h2", "h3", "h4", "h5", "h6")
    assert chosen.reason.startswith("6 of 8: a round of 0.9 s (slowest h")
    assert [a.name for a in chosen.alternatives if a.chosen] == ["the fastest 6"]
    assert chosen.inputs["forecasts"]["h8"]["seconds"] > 30  # type: ignore[index, call-overload, operator]


def test_it_keeps_as_many_as_the_final_loss_needs_although_fewer_would_be_faster() -> None:
    world = situation(rates(80, 40, 20, 10, 5, 4, 3, 2))
    few = plan(least_efficiency=0.0, noise_nodes=0.1).select(Start(nodes=names(8), situation=world))
    many = plan(least_efficiency=0.9, noise_nodes=1.0).select(Start(nodes=names(8), situation=world))
    assert few.nodes == ("h1",)
    assert len(many.nodes) == 4  # (1 + 1/8) / (1 + 1/k) >= 0.9 from k = 4


def test_equal_nodes_are_all_taken() -> None:
    world = situation(rates(*[10.0] * 8))
    assert plan().select(Start(nodes=names(8), situation=world)).nodes == names(8)


def test_a_slow_node_is_kept_if_nobody_else_has_its_kind_of_data() -> None:
    speeds = rates(20, 20, 20, 20, 20, 20, 8, 8)
    alike = situation(speeds)
    half = dict.fromkeys(names(6), (1.0, 0.0)) | {"h7": (0.0, 1.0), "h8": (0.0, 1.0)}
    unlike = situation(speeds, makeup=half)
    options = {"drift": 4.0, "least_efficiency": 0.5}
    assert len(plan(**options).select(Start(nodes=names(8), situation=alike)).nodes) == 6
    assert plan(**options).select(Start(nodes=names(8), situation=unlike)).nodes == names(8)


def test_parts_of_the_same_text_that_differ_by_chance_do_not_cost_a_set_its_place() -> None:
    draw = np.random.default_rng(3)
    speeds = rates(*[20] * 5, *[1] * 7)
    makeup = {node: tuple(draw.dirichlet([400] * 16).tolist()) for node in names(12)}
    parts = situation(speeds, makeup=makeup)
    assert plan().select(Start(nodes=names(12), situation=parts)).nodes == names(5)


def test_where_nothing_is_known_all_begin_and_all_are_waited_for() -> None:
    start = Start(nodes=names(3), situation=Situation(epochs=3))
    chosen = plan().select(start)
    assert (chosen.nodes, chosen.reason) == (
        names(3),
        "no round can be forecast (the bytes of a round are unknown): all begin",
    )
    round_plan = plan().plan_round(RoundStart(epoch=0, candidates=names(3), situation=start.situation))
    assert round_plan.quorum is None


def test_a_node_of_which_nothing_is_known_counts_as_the_slowest() -> None:
    world = situation(rates(20, 20, 20, 20, 20, 20, 1))
    assert "h8" not in plan().select(Start(nodes=names(8), situation=world)).nodes


def test_what_the_orchestrators_link_takes_for_all_speaks_against_many() -> None:
    speeds = rates(*[100.0] * 8)
    wide = situation(speeds)
    narrow = situation(speeds, orchestrator_bps=50e6)
    options = {"least_efficiency": 0.0, "noise_nodes": 0.5}
    assert len(plan(**options).select(Start(nodes=names(8), situation=wide)).nodes) == 8
    assert len(plan(**options).select(Start(nodes=names(8), situation=narrow)).nodes) < 8


def test_a_node_that_was_forecast_wrongly_is_replaced() -> None:
    world = situation(rates(20, 20, 20, 20, 20, 20, 10, 1))
    members = names(6)
    took = dict.fromkeys(members, 0.9) | {"h1": 9.0}
    history = [a_round(0, took, **{node: {"predicted_s": 0.85} for node in members})]
    view = RoundView(
        epoch=0,
        scores=scored(members),
        unselected=("h7", "h8"),
        situation=situation(rates(20, 20, 20, 20, 20, 20, 10, 1), history=history),
    )
    choice = plan(least_efficiency=0.96, noise_nodes=1.0).choose(view)
    assert (choice.eliminated, choice.readmitted) == (("h1",), ("h7",))
    assert choice.reason.startswith("out h1; in h7: a round of")
    assert world.history == ()


def test_a_set_is_not_changed_for_a_gain_that_is_hardly_one() -> None:
    """Two sets that take turns by a few per cent must not make nodes flap."""
    members, others = names(6), ("h7", "h8")
    for swing in (0.96, 1.04, 0.97, 1.03):
        speeds = rates(20, 20, 20, 20, 20, 20 * swing, 20, 20)
        view = RoundView(
            epoch=0, scores=scored(members), unselected=others, situation=situation(speeds, epochs=10)
        )
        choice = plan(gain=0.2, least_efficiency=0.8).choose(view)
        assert (choice.eliminated, choice.readmitted) == ((), ())


def test_a_late_node_is_not_waited_for_unless_everybody_takes_longer() -> None:
    policy = plan(patience=1.5)
    forecast = {"h1": 10.0, "h2": 10.0, "h3": 10.0}
    late = {"epoch": 0, "scores": (), "awaited": frozenset({"h3"}), "forecast_s": forecast}
    usual = OpenRound(**late, elapsed_s=16.0, answered={"h1": 10.0, "h2": 11.0})  # type: ignore[arg-type]
    slow_for_all = OpenRound(**late, elapsed_s=16.0, answered={"h1": 14.0, "h2": 15.0})  # type: ignore[arg-type]
    assert policy.may_close(usual) == "h3: 16.0 s, 10.0 s were forecast (the others: x1.05)"
    assert policy.may_close(slow_for_all) is None


def test_the_last_member_is_never_given_up() -> None:
    view = RoundView(epoch=0, scores=scored(["h1"]), situation=situation(rates(1)))
    assert plan().choose(view).eliminated == ()


@given(
    seconds=st.lists(st.floats(0.1, 1e4), min_size=1, max_size=30),
    noise=st.floats(0, 20),
    least=st.floats(0, 1),
)
def test_no_set_of_the_fastest_is_cheaper_than_the_one_that_is_taken(
    seconds: list[float], noise: float, least: float
) -> None:
    """And its cost is that of the set taken by itself."""
    options = PlanOptions(noise_nodes=noise, least_efficiency=least)
    count = len(seconds)
    pool = Pool(round_s=np.array(seconds), load_s=np.zeros(count), samples=np.ones(count))
    table = costs(pool, 5, options)
    size = table.best(least)
    members = np.zeros(count, dtype=bool)
    members[table.order[:size]] = True
    seconds_taken, efficiency = cost_of(members, pool, 5, options)
    assert seconds_taken == pytest.approx(float(table.seconds[size - 1]))
    assert efficiency >= least - 1e-9 or size == count
    allowed = table.efficiency >= least
    assert all(seconds_taken <= s * (1 + 1e-9) for s in table.seconds[allowed])


@given(st.permutations(list(range(8))))
def test_the_order_of_the_nodes_does_not_matter(order: list[int]) -> None:
    world = situation(rates(20, 18, 16, 14, 12, 10, 8, 1))
    nodes = tuple(f"h{i + 1}" for i in order)
    assert set(plan().select(Start(nodes=nodes, situation=world)).nodes) == set(
        plan().select(Start(nodes=names(8), situation=world)).nodes
    )


@pytest.mark.parametrize(("name", "value"), [("gain", -0.1), ("patience", 0.5), ("quorum", 2.0)])
def test_options_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidValue, match=f"plan: {name} is {value}"):
        PlanOptions(**{name: value})
