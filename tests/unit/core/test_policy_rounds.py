"""The policies that choose anew each round (deadline, oort), and what all policies have in common."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_worlds import a_round, names, scored, situation

from orchestrator.core.errors import InvalidValue
from orchestrator.core.selection import (
    POLICIES,
    DeadlineOptions,
    OortOptions,
    Policy,
    PolicyOptions,
    RoundStart,
    RoundView,
    Situation,
    Start,
    make_policy,
)
from orchestrator.core.selection.oort import Tried, draw, preferred_s, remember, utilities


def policy(name: str, *, nodes: int = 10, seed: int = 0, **options: object) -> Policy:
    chosen = PolicyOptions(**options)  # type: ignore[arg-type]
    return make_policy(name, nodes=nodes, epochs=4, rng=Random(seed), options=chosen)


def test_deadline_asks_a_third_more_than_it_keeps() -> None:
    plan = policy("deadline").plan_round(RoundStart(epoch=0, candidates=names(10)))
    assert (len(plan.participants), plan.quorum) == (7, 5)
    assert plan.reason == "7 of 10 free nodes are asked, the fastest 5 kept"


def test_deadline_draws_anew_each_round_and_only_among_those_that_are_free() -> None:
    deadline = policy("deadline", nodes=20)
    drawn = {deadline.plan_round(RoundStart(epoch=e, candidates=names(20))).participants for e in range(5)}
    assert len(drawn) > 1
    few = deadline.plan_round(RoundStart(epoch=0, candidates=names(3)))
    assert (few.participants, few.quorum) == (names(3), 3)


def test_a_deadline_in_seconds_is_passed_on() -> None:
    options = DeadlineOptions(share=0.2, over_select=2.0, deadline_s=30.0)
    plan = policy("deadline", deadline=options).plan_round(RoundStart(epoch=0, candidates=names(10)))
    assert (len(plan.participants), plan.quorum, plan.deadline_s) == (4, 2, 30.0)


def test_oort_at_first_explores_and_prefers_the_fast() -> None:
    world = situation({node: (50e6 if i < 5 else 0.1e6) for i, node in enumerate(names(10))})
    asked = [
        policy("oort", seed=seed).plan_round(RoundStart(epoch=0, candidates=names(10), situation=world))
        for seed in range(20)
    ]
    fast = sum(node in names(5) for plan in asked for node in plan.participants)
    assert all(len(plan.participants) == 7 and plan.quorum == 5 for plan in asked)
    assert fast == 20 * 5  # five are fast, and seven asked: the fast ones are always among them


def test_oort_keeps_a_fifth_of_the_round_for_exploring_and_the_rest_for_utility() -> None:
    history = [a_round(e, dict.fromkeys(names(8), 10.0)) for e in range(100)]
    world = Situation(epochs=200, history=tuple(history))
    plan = policy("oort").plan_round(RoundStart(epoch=100, candidates=names(10), situation=world))
    assert plan.inputs["epsilon"] == 0.2
    assert len(plan.inputs["explored"]) == 1  # type: ignore[arg-type]
    assert set(plan.inputs["explored"]) <= {"h9", "h10"}  # type: ignore[arg-type]


def tried(utility: float = 64.0, seconds: float = 10.0, last: int = 1, picks: int = 1) -> Tried:
    return Tried(utility=utility, seconds=seconds, last=last, picks=picks)


def test_oorts_utility_is_that_of_the_paper() -> None:
    """Utility over its cap, plus sqrt(0.1 log R / last), times (T / t)^alpha where t > T."""
    found = utilities(
        [tried(), tried(utility=32.0), tried(seconds=20.0), tried(last=4)], 8, 10.0, OortOptions(clip=1.0)
    )
    stale = np.sqrt(0.1 * np.log(8))
    assert found == pytest.approx([1 + stale, 0.5 + stale, (1 + stale) * 0.25, 1 + stale / 2])


def test_oort_clips_utilities_so_that_one_odd_node_does_not_rule() -> None:
    found = utilities([tried()] * 19 + [tried(utility=6400.0)], 1, None, OortOptions(clip=0.9))
    assert found == pytest.approx([1.0] * 20)


def test_oorts_pacer_relaxes_the_preferred_duration_when_rounds_teach_less() -> None:
    seconds = {f"h{i}": float(i) for i in range(1, 11)}
    falling = [
        a_round(e, seconds, **{node: {"loss": 2.0 if e < 5 else 1.0} for node in seconds}) for e in range(10)
    ]
    options = OortOptions(window=5)
    assert preferred_s(falling[:5], options) == pytest.approx(5.5)
    assert preferred_s(falling, options) == pytest.approx(6.4)
    assert preferred_s([], options) is None


def test_oort_remembers_the_utility_of_a_late_node_and_that_it_was_slow() -> None:
    late = {"h1": {"answered": False, "loss": None, "samples": 0}}
    known = remember([a_round(0, {"h1": 5.0}), a_round(1, {"h1": 50.0}, **late)])
    assert known["h1"] == Tried(utility=64.0, seconds=50.0, last=2, picks=2)


def test_oort_gives_a_node_a_rest_after_most_picks() -> None:
    history = [
        a_round(e, dict.fromkeys(names(2), 1.0), **{n: {"loss": 9.0} for n in names(2)}) for e in range(3)
    ]
    history.append(a_round(3, dict.fromkeys([f"h{i}" for i in range(3, 11)], 1.0)))
    world = Situation(epochs=20, history=tuple(history))
    options = OortOptions(share=0.5, over_select=1.0, most_picks=3)
    plan = policy("oort", oort=options).plan_round(RoundStart(epoch=4, candidates=names(10), situation=world))
    assert not {"h1", "h2"} & set(plan.participants)


def test_draws_follow_the_weights() -> None:
    rng = np.random.default_rng(0)
    firsts = [int(draw(np.array([1.0, 3.0]), 1, rng)[0]) for _ in range(4000)]
    assert np.mean(firsts) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OortOptions(epsilon=1.5),
        lambda: OortOptions(share=0),
        lambda: OortOptions(window=0),
        lambda: DeadlineOptions(share=0),
        lambda: DeadlineOptions(over_select=0.9),
        lambda: DeadlineOptions(deadline_s=0),
    ],
)
def test_options_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(InvalidValue, match="must be"):
        make()  # type: ignore[operator]


@given(name=st.sampled_from(POLICIES), seed=st.integers(0, 50), epoch=st.integers(0, 3), known=st.booleans())
def test_every_policy_names_somebody_explains_itself_and_repeats_itself(
    name: str, seed: int, epoch: int, known: bool
) -> None:
    nodes = names(10)
    rates = {node: 1e6 * (i + 1) for i, node in enumerate(nodes)}
    history = tuple(a_round(e, {node: 1.0 + i for i, node in enumerate(nodes)}) for e in range(epoch))
    world = situation(rates, epochs=4, history=history) if known else Situation(epochs=4, history=history)
    answers = []
    for _ in range(2):
        made = policy(name, seed=seed)
        chosen = made.select(Start(nodes=nodes, situation=world))
        plan = made.plan_round(RoundStart(epoch=epoch, candidates=chosen.nodes, situation=world))
        view = RoundView(epoch=epoch, scores=scored(plan.participants), situation=world)
        answers.append((chosen, plan, made.choose(view)))
        assert set(plan.participants) <= set(chosen.nodes) <= set(nodes)
        assert plan.participants
        assert all(answer.reason for answer in answers[-1])
        assert plan.quorum is None or 1 <= plan.quorum <= len(plan.participants)
        assert len(answers[-1][2].eliminated) < len(plan.participants)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_breaks_when_everybody_is_lost(name: str) -> None:
    made = policy(name)
    made.plan_round(RoundStart(epoch=0, candidates=()))
    choice = made.choose(RoundView(epoch=0, scores=(), lost=names(3)))
    assert choice.eliminated == ()
