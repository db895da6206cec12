"""Elimination that does not wait for what is certain, and takes back who has recovered, without flapping."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_worlds import names, scored

from orchestrator.core.decisions import NodeScore
from orchestrator.core.errors import InvalidValue
from orchestrator.core.scoring import Criteria, Weights, score_nodes
from orchestrator.core.selection import (
    Choice,
    EliminationOptions,
    OpenRound,
    Policy,
    PolicyOptions,
    RoundStart,
    RoundView,
    Situation,
    make_policy,
)
from orchestrator.core.selection.progress import efficiency, least_nodes


def eliminate(nodes: int = 9, epochs: int = 5, **options: object) -> Policy:
    chosen = PolicyOptions(eliminate=EliminationOptions(**options))  # type: ignore[arg-type]
    return make_policy("eliminate", nodes=nodes, epochs=epochs, rng=Random(0), options=chosen)


def test_it_waits_for_all_but_those_that_the_epoch_eliminates() -> None:
    start = RoundStart(epoch=0, candidates=names(9), situation=Situation(epochs=5))
    assert eliminate().plan_round(start).quorum == 7
    assert eliminate(wait="all").plan_round(start).quorum is None


def test_the_last_epoch_waits_for_everybody() -> None:
    start = RoundStart(epoch=4, candidates=names(3), situation=Situation(epochs=5))
    assert eliminate().plan_round(start).quorum is None


def test_a_round_closes_only_when_every_awaited_node_is_among_the_lowest() -> None:
    scores = scored(names(9))
    certain = OpenRound(epoch=0, scores=scores, awaited=frozenset({"h8", "h9"}))
    open_still = OpenRound(epoch=0, scores=scores, awaited=frozenset({"h7", "h9"}))
    assert eliminate().may_close(certain) == (
        "h8, h9 will be eliminated whatever still comes: the time taken so far makes them the lowest"
    )
    assert eliminate().may_close(open_still) is None


def test_whom_a_round_was_closed_without_goes_even_if_measurements_since_say_another() -> None:
    scores = scored(names(9))
    late = RoundView(epoch=0, scores=scores, late=frozenset({"h3"}), situation=Situation(epochs=5))
    assert eliminate().choose(late).eliminated == ("h3", "h9")
    nobody = RoundView(epoch=0, scores=scores, situation=Situation(epochs=5))
    assert eliminate().choose(nobody).eliminated == ("h8", "h9")


@given(
    others=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(1, 99)), min_size=3, max_size=8),
    mine=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    waited=st.floats(100, 1000),
    later=st.floats(0, 1e5),
    variant=st.sampled_from(["projection", "euclidean"]),
)
def test_what_is_certain_stays_so_however_long_the_awaited_node_takes(
    others: list[tuple[float, float, float]],
    mine: tuple[float, float],
    waited: float,
    later: float,
    variant: str,
) -> None:
    """Its time can only grow: if it is the lowest by the time taken so far, it is the lowest in the end."""

    def rank_of_mine(seconds: float) -> tuple[int, float]:
        rows = [*others, (*mine, seconds)]
        scores = score_nodes(
            [
                Criteria(node=f"n{i}", compute=c, bandwidth=b, delay=0.0, loss=0.0, time=t, notes={})
                for i, (c, b, t) in enumerate(rows)
            ],
            Weights(),
            variant,
        )
        found = {score.node: score for score in scores}
        own = found.pop(f"n{len(others)}")
        return own.rank, own.score - min(score.score for score in found.values())

    rank, margin = rank_of_mine(waited)
    if rank == len(others) + 1 and margin < -1e-9:
        assert rank_of_mine(waited + later)[0] == len(others) + 1


def view(
    epoch: int, active: dict[str, float], standby: dict[str, float], choices: tuple[Choice, ...]
) -> RoundView:
    def ranked(scores: dict[str, float]) -> tuple[NodeScore, ...]:
        ordered = sorted(scores, key=lambda name: (-scores[name], name))
        return tuple(
            NodeScore(node=name, score=scores[name], rank=i, criteria={}) for i, name in enumerate(ordered, 1)
        )

    return RoundView(
        epoch=epoch,
        scores=ranked(active),
        eliminated=tuple(standby),
        standby=tuple(standby),
        pool=ranked(active | standby),
        choices=choices,
    )


GONE = (Choice(eliminated=("x",), reason=""), Choice(eliminated=("y",), reason=""))


def test_a_node_that_has_recovered_comes_back_and_the_reason_says_so() -> None:
    policy = eliminate(nodes=7, epochs=6)
    choice = policy.choose(view(2, {"a": 0.9, "b": 0.5, "c": 0.4}, {"x": 0.8}, GONE))
    assert (choice.eliminated, choice.readmitted) == (("c",), ("x",))
    assert choice.reason.endswith("x recovered and may train again")


@pytest.mark.parametrize(
    ("epoch", "score", "choices"),
    [
        (2, 0.55, GONE),  # better than the lowest that stays, but not by the margin
        (1, 0.8, GONE[:1]),  # good enough, but it went an epoch ago
        (9, 0.9, (GONE[0], Choice(eliminated=(), readmitted=("x",), reason=""), GONE[0])),  # came back once
    ],
)
def test_a_node_does_not_come_back_too_easily_too_soon_or_too_often(
    epoch: int, score: float, choices: tuple[Choice, ...]
) -> None:
    policy = eliminate(nodes=7, epochs=6, rejoin_limit=1)
    assert policy.choose(view(epoch, {"a": 0.9, "b": 0.5, "c": 0.4}, {"x": score}, choices)).readmitted == ()


@given(
    noise=st.lists(st.floats(-0.04, 0.04), min_size=60, max_size=60),
    true=st.lists(st.floats(0, 1), min_size=12, max_size=12),
)
def test_scores_that_waver_within_the_margin_make_nobody_flap(noise: list[float], true: list[float]) -> None:
    policy, errors = eliminate(nodes=12, epochs=6), iter(noise)
    active, choices = dict(enumerate(true)), ()
    names_of = {i: f"n{i:02d}" for i in active}
    for epoch in range(5):
        seen = {names_of[i]: value + next(errors) for i, value in enumerate(true)}
        now = {names_of[i]: seen[names_of[i]] for i in active}
        out = {name: value for name, value in seen.items() if name not in now}
        choice = policy.choose(view(epoch, now, out, choices))
        assert choice.readmitted == ()
        choices = (*choices, choice)
        active = {i: value for i, value in active.items() if names_of[i] not in choice.eliminated}


@pytest.mark.parametrize("name", ["eliminate", "random"])
def test_it_ends_where_fewer_nodes_would_make_too_little_progress(name: str) -> None:
    """(1 + 3/9) / (1 + 3/4) is 0.76, of three nodes it would be 0.67."""
    options = PolicyOptions(eliminate=EliminationOptions(least_efficiency=0.7, noise_nodes=3.0))
    policy = make_policy(name, nodes=9, epochs=5, rng=Random(0), options=options)
    assert len(policy.choose(view(1, dict.fromkeys("abcde", 0.5), {}, ())).eliminated) == 1
    four = policy.choose(view(2, dict.fromkeys("abcd", 0.5), {}, ()))
    assert four.eliminated == ()


def test_who_cannot_be_eliminated_is_waited_for() -> None:
    policy = eliminate(least_efficiency=0.7, noise_nodes=3.0)
    situation = Situation(epochs=5)
    assert policy.plan_round(RoundStart(epoch=1, candidates=names(5), situation=situation)).quorum == 4
    assert policy.plan_round(RoundStart(epoch=2, candidates=names(4), situation=situation)).quorum is None
    reason = policy.choose(view(2, dict.fromkeys("abcd", 0.5), {}, ())).reason
    assert reason == "only 4 took part; the last 4 are never eliminated"


@given(nodes=st.integers(1, 500), noise=st.floats(0, 50), least=st.floats(0, 1))
def test_the_least_number_is_the_first_that_is_efficient_enough(
    nodes: int, noise: float, least: float
) -> None:
    found = least_nodes(nodes, noise_nodes=noise, least_efficiency=least)
    assert 1 <= found <= nodes
    assert efficiency(float(found), whole=nodes, noise=noise) >= least - 1e-6
    if found > 1:
        assert efficiency(found - 1.0, whole=nodes, noise=noise) < least + 1e-6


def test_by_lot_one_comes_back_for_each_that_was_lost() -> None:
    policy = make_policy("random", nodes=9, epochs=5, rng=Random(3))
    plain = view(2, {"a": 0.9, "b": 0.5, "c": 0.4}, {"x": 0.1, "y": 0.2}, GONE)
    assert policy.choose(plain).readmitted == ()
    lost = RoundView(epoch=2, scores=plain.scores, standby=plain.standby, lost=("z",))
    choice = policy.choose(lost)
    assert len(choice.readmitted) == 1
    assert choice.reason.endswith("drawn back for z, which failed")


@pytest.mark.parametrize(
    "options",
    [
        {"wait": "never"},
        {"least_efficiency": 1.1},
        {"noise_nodes": -1.0},
        {"rejoin_margin": -1.0},
        {"rejoin_after": 0},
        {"rejoin_limit": -1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidValue, match="eliminate: "):
        EliminationOptions(**options)  # type: ignore[arg-type]
