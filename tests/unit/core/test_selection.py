"""Selection policies: Eq. 1, the last node, ties, and what is refused."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.decisions import NodeScore
from orchestrator.core.errors import InvalidPolicy
from orchestrator.core.selection import RoundView, eliminations_per_epoch, make_policy


def view(scores: dict[str, float], epoch: int = 0) -> RoundView:
    ordered = sorted(scores, key=lambda name: (-scores[name], name))
    return RoundView(
        epoch=epoch,
        scores=tuple(
            NodeScore(node=name, score=scores[name], rank=rank, criteria={})
            for rank, name in enumerate(ordered, start=1)
        ),
    )


@given(epochs=st.integers(2, 40), more=st.integers(1, 200), name=st.sampled_from(["eliminate", "random"]))
def test_over_a_whole_job_the_count_follows_equation_1_and_somebody_is_left(
    epochs: int, more: int, name: str
) -> None:
    nodes = epochs + more
    policy = make_policy(name, nodes=nodes, epochs=epochs, rng=Random(1))
    active = {f"n{i}": float(i) for i in range(nodes)}
    for epoch in range(epochs - 1):
        choice = policy.choose(view(active, epoch))
        assert len(choice.eliminated) == (nodes - 1) // (epochs - 1)
        active = {node: score for node, score in active.items() if node not in choice.eliminated}
    assert len(active) == nodes - (epochs - 1) * ((nodes - 1) // (epochs - 1)) >= 1


def test_the_twelve_nodes_and_six_epochs_of_the_demo_lose_two_per_epoch() -> None:
    assert eliminations_per_epoch(12, 6) == 2


def test_the_lowest_scores_go_and_the_reason_names_them() -> None:
    choice = make_policy("eliminate", nodes=5, epochs=3, rng=Random(0)).choose(
        view({"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.1, "e": 0.8})
    )
    assert choice.eliminated == ("b", "d")
    assert choice.reason == "b (0.200), d (0.100): the lowest of 5 scores; 2 per epoch by Eq. 1"


def test_equal_scores_fall_by_name_so_that_a_run_can_be_repeated() -> None:
    policy = make_policy("eliminate", nodes=4, epochs=3, rng=Random(0))
    assert policy.choose(view({"d": 0.5, "a": 0.5, "c": 0.5, "b": 0.5})).eliminated == ("d",)


@pytest.mark.parametrize("name", ["eliminate", "random"])
def test_the_last_node_is_never_eliminated(name: str) -> None:
    policy = make_policy(name, nodes=10, epochs=2, rng=Random(0))
    assert len(policy.choose(view({"a": 0.1, "b": 0.2, "c": 0.3})).eliminated) == 2
    assert policy.choose(view({"a": 0.1})).eliminated == ()
    assert policy.choose(view({})).eliminated == ()


def test_all_resources_eliminates_nobody() -> None:
    policy = make_policy("all", nodes=2, epochs=5, rng=Random(0))
    assert policy.choose(view({"a": 0.1, "b": 0.9})).eliminated == ()


def test_the_random_draw_depends_on_the_seed_only() -> None:
    scores = {f"n{i}": i / 10 for i in range(10)}
    draws = [
        make_policy("random", nodes=10, epochs=4, rng=Random(seed)).choose(view(scores)).eliminated
        for seed in (5, 5, 6)
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


@pytest.mark.parametrize(
    ("nodes", "epochs", "message"),
    [(6, 6, "only 6 nodes; elimination needs N > T > 1"), (9, 1, "needs T > 1 epochs")],
)
def test_elimination_without_its_condition_is_refused(nodes: int, epochs: int, message: str) -> None:
    with pytest.raises(InvalidPolicy, match=message):
        make_policy("eliminate", nodes=nodes, epochs=epochs, rng=Random(0))


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(InvalidPolicy, match="'best' is unknown; known: all, eliminate, random"):
        make_policy("best", nodes=3, epochs=2, rng=Random(0))
