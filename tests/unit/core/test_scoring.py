"""Scores: laws that hold for any nodes, and the case that the literal formula gets wrong."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import InvalidValue
from orchestrator.core.scoring import BENEFITS, CRITERIA, Criteria, Weights, score, score_nodes

ORIENTED = ("projection", "euclidean")
values = st.floats(min_value=0.001, max_value=1e6, allow_nan=False)

EQUAL = Weights.equal()


def node(name: str, compute=1.0, bandwidth=1.0, delay=1.0, loss=0.01, time=1.0, **notes: str) -> Criteria:
    return Criteria(
        node=name, compute=compute, bandwidth=bandwidth, delay=delay, loss=loss, time=time, notes=notes
    )


@st.composite
def node_sets(draw: st.DrawFn) -> list[Criteria]:
    count = draw(st.integers(min_value=2, max_value=7))
    return [node(f"n{i}", *(draw(values) for _ in CRITERIA)) for i in range(count)]


def scores_by_name(nodes: list[Criteria], weights: Weights, variant: str) -> dict[str, float]:
    return {score.node: score.score for score in score_nodes(nodes, weights, variant)}


@pytest.mark.parametrize("variant", ORIENTED)
@pytest.mark.parametrize("criterion", CRITERIA)
@given(nodes=node_sets())
def test_a_node_that_gets_better_in_a_criterion_never_falls_behind_one_it_was_ahead_of(
    variant: str, criterion: str, nodes: list[Criteria]
) -> None:
    weights = EQUAL
    known = [getattr(item, criterion) for item in nodes]
    best = max(known) if criterion in BENEFITS else min(known)
    improved = [replace(nodes[0], **{criterion: best}), *nodes[1:]]
    before = scores_by_name(nodes, weights, variant)
    after = scores_by_name(improved, weights, variant)
    if min(known) == max(known) or sorted(known)[0 if best == min(known) else -1] == getattr(
        nodes[0], criterion
    ):
        return
    if (known.count(min(known)) < 2 and known[0] == min(known)) or (
        known.count(max(known)) < 2 and known[0] == max(known)
    ):
        return  # the node itself set the scale: the others are measured anew
    assert after["n0"] >= before["n0"] - 1e-12
    for other in [item.node for item in nodes[1:]]:
        assert after[other] == pytest.approx(before[other])


@pytest.mark.parametrize("variant", ORIENTED)
@given(nodes=node_sets(), data=st.data())
def test_the_order_of_the_nodes_does_not_matter(
    variant: str, nodes: list[Criteria], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(nodes))
    assert score_nodes(nodes, EQUAL, variant) == score_nodes(shuffled, EQUAL, variant)


@pytest.mark.parametrize("variant", ORIENTED)
@given(nodes=node_sets())
def test_a_node_that_is_no_worse_in_anything_scores_no_less(variant: str, nodes: list[Criteria]) -> None:
    scored = scores_by_name(nodes, EQUAL, variant)
    for a in nodes:
        for b in nodes:
            if all(
                getattr(a, name) >= getattr(b, name)
                if name in BENEFITS
                else getattr(a, name) <= getattr(b, name)
                for name in CRITERIA
            ):
                assert scored[a.node] >= scored[b.node] - 1e-12


@pytest.mark.parametrize("variant", ORIENTED)
def test_the_best_in_everything_scores_1_and_the_worst_in_everything_0(variant: str) -> None:
    nodes = [node("worst", 1, 1, 9, 0.9, 9), node("best", 2, 2, 1, 0.1, 1)]
    assert scores_by_name(nodes, EQUAL, variant) == pytest.approx({"best": 1.0, "worst": 0.0})


def test_taken_literally_the_formula_ranks_the_worst_node_above_a_better_one() -> None:
    worst = node("worst", 1, 1, 9, 0.9, 9)
    middling = node("middling", 2, 1, 5, 0.5, 1)
    best = node("best", 4, 4, 1, 0.1, 1)
    weights = Weights(compute=0.1, bandwidth=0.1, delay=0.3, loss=0.2, time=0.3)
    nodes = [worst, middling, best]
    printed = scores_by_name(nodes, EQUAL, "printed")
    assert printed["worst"] > scores_by_name(nodes, EQUAL, "projection")["worst"]
    for variant in ORIENTED:
        assert [s.node for s in score_nodes(nodes, weights, variant)] == ["best", "middling", "worst"]


def test_the_literal_form_is_equation_3_without_orientation() -> None:
    nodes = [node("a", 0, 0, 1, 1, 1), node("b", 1, 1, 0, 0, 0)]
    # a: s = 0.6, lambda_s = 0.4, score 0.8; b: s = 0.4, score 1.
    assert scores_by_name(nodes, EQUAL, "printed") == pytest.approx({"a": 0.8, "b": 1.0})


@pytest.mark.parametrize("variant", ["projection", "euclidean", "printed"])
def test_a_constant_criterion_separates_nobody(variant: str) -> None:
    nodes = [node("a", compute=3), node("b", compute=3)]
    assert scores_by_name(nodes, EQUAL, variant) == pytest.approx({"a": 1.0, "b": 1.0})


def test_an_unknown_value_counts_as_the_worst_known_and_says_so() -> None:
    nodes = [node("a", delay=None, delay_note="x"), node("b", delay=0.2), node("c", delay=0.1)]
    nodes[0] = replace(nodes[0], notes={"delay": "the path was never measured"})
    by_name = {score.node: score for score in score_nodes(nodes, EQUAL, "euclidean")}
    assert by_name["a"].score == by_name["b"].score < by_name["c"].score
    assert by_name["a"].criteria["delay"].note == (
        "the path was never measured; counted as the worst of the scored set"
    )
    assert by_name["a"].criteria["delay"].value is None
    assert by_name["c"].criteria["delay"].note is None


def test_a_criterion_that_nobody_knows_separates_nobody() -> None:
    nodes = [node("a", loss=None), node("b", loss=None)]
    assert scores_by_name(nodes, EQUAL, "euclidean") == pytest.approx({"a": 1.0, "b": 1.0})


def test_nobody_to_score_gives_no_scores() -> None:
    assert score_nodes([], EQUAL) == ()


def test_an_unknown_variant_is_refused_by_name() -> None:
    with pytest.raises(InvalidValue, match="'manhattan' is unknown; known: projection, euclidean, printed"):
        score_nodes([node("a")], EQUAL, "manhattan")


def test_weights_that_do_not_sum_to_1_are_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidValue, match=r"sum to 1\.4, not 1 .*divide each by 1\.4"):
        Weights(compute=0.4)


def test_a_million_nodes_are_scored_within_two_seconds() -> None:
    many = np.random.default_rng(1).random((1_000_000, 5))
    began = time.perf_counter()
    result = score(many, EQUAL.vector(), "euclidean")
    assert result.shape == (1_000_000,)
    assert time.perf_counter() - began < 2
