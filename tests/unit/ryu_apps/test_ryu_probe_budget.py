"""More measuring packets as long as they are wanted and cheap, fewer as soon as they cost too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.probe_budget import LATE_SWITCH_S, LATE_TURN_S, LEAST_RATE, START_RATE, Cost, ProbeBudget

MOST = 1000.0
MUCH = 5000.0


def after(
    seconds: int,
    *,
    cpu: float = 0.1,
    late_turn_s: float = 0.0,
    late_switch_s: float = 0.0,
    wanted: float = MUCH,
    budget: ProbeBudget | None = None,
    begin: int = 0,
) -> ProbeBudget:
    """Return a budget after so many seconds that all cost the same."""
    budget = budget or ProbeBudget(most_rate=MOST, cpu_share=0.25)
    for second in range(begin, begin + seconds):
        cost = Cost(at=1e9 + second, cpu_s=cpu * second, late_turn_s=late_turn_s, late_switch_s=late_switch_s)
        budget.note(cost, wanted_rate=wanted)
    return budget


def test_the_limit_grows_to_the_most_while_measuring_is_cheap() -> None:
    budget = after(60)
    assert budget.rate == MOST
    assert budget.reason is None


def test_the_limit_stays_while_nobody_wants_more() -> None:
    assert after(60, wanted=START_RATE / 2).rate == START_RATE


@pytest.mark.parametrize(
    ("costs", "says"),
    [
        ({"late_turn_s": 2 * LATE_TURN_S}, "turns come 40 ms late"),
        ({"late_switch_s": 2 * LATE_SWITCH_S}, "switches answer"),
    ],
)
def test_what_makes_things_late_is_cut_to_the_least_and_says_why(costs: dict[str, float], says: str) -> None:
    budget = after(60, **costs)  # type: ignore[arg-type]
    assert budget.rate == LEAST_RATE
    assert budget.reason is not None
    assert says in budget.reason


def test_processor_time_that_other_things_take_leaves_the_probes_of_the_beginning() -> None:
    budget = after(60)
    assert budget.rate == MOST
    assert after(60, cpu=0.5, budget=budget, begin=60).rate == START_RATE
    assert budget.reason == "the controller takes 0.50 of a processor core, 0.25 are allowed"
    late = after(30, cpu=0.5, late_switch_s=1.0)
    assert late.rate == LEAST_RATE
    assert after(60, cpu=0.5, budget=late, begin=30).rate == START_RATE


def test_a_share_that_is_nearly_used_up_neither_grows_nor_shrinks() -> None:
    budget = after(60, cpu=0.24)
    assert budget.rate == START_RATE
    assert budget.reason == "the controller takes 0.24 of a processor core, 0.25 are allowed"


def test_the_processor_time_before_a_cut_does_not_cut_again() -> None:
    budget = after(4, cpu=0.1)
    budget.note(Cost(at=1e9 + 4, cpu_s=1.5, late_turn_s=0, late_switch_s=0), wanted_rate=MUCH)
    cut = budget.rate
    for second in range(5, 8):
        cost = Cost(at=1e9 + second, cpu_s=1.5 + 0.1 * (second - 4), late_turn_s=0, late_switch_s=0)
        budget.note(cost, wanted_rate=MUCH)
    assert budget.rate > cut


def test_a_limit_that_was_cut_recovers_once_the_cost_is_gone() -> None:
    budget = after(30, late_switch_s=1.0)
    assert after(60, budget=budget, begin=30).rate == MOST
    assert budget.reason is None


def test_a_least_above_the_configured_most_is_not_exceeded() -> None:
    budget = ProbeBudget(most_rate=20.0, cpu_share=0.25)
    assert after(30, cpu=0.9, budget=budget).rate == 20.0


SECONDS = st.tuples(st.floats(0, 1), st.floats(0, 0.1), st.floats(0, 0.1), st.floats(0, 1e4))


@given(st.lists(SECONDS, max_size=50))
def test_the_limit_is_never_out_of_bounds(seconds: list[tuple[float, float, float, float]]) -> None:
    budget, cpu_s = ProbeBudget(most_rate=MOST, cpu_share=0.25), 0.0
    for number, (cpu, turn_s, switch_s, wanted) in enumerate(seconds):
        cpu_s += cpu
        cost = Cost(at=1e9 + number, cpu_s=cpu_s, late_turn_s=turn_s, late_switch_s=switch_s)
        budget.note(cost, wanted_rate=wanted)
        assert LEAST_RATE <= budget.rate <= MOST
