"""Learning-rate schedules: how they begin, fall and end."""

from __future__ import annotations

import pytest

from workers.finetune.schedule import SCHEDULES, Schedule


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_rate_rises_over_the_warm_up_and_then_begins_whole(kind: str) -> None:
    schedule = Schedule(kind=kind, total_steps=100, warmup_steps=4)
    assert [schedule.factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_falling_schedules_end_at_their_share_and_stay_there() -> None:
    for kind in ("linear", "cosine"):
        schedule = Schedule(kind=kind, total_steps=10, final_ratio=0.1)
        factors = [schedule.factor(step) for step in range(14)]
        assert factors == sorted(factors, reverse=True)
        assert factors[10:] == pytest.approx([0.1] * 4)
        assert factors[5] == pytest.approx(0.55), "halfway both are in the middle"


def test_a_constant_rate_is_constant() -> None:
    assert {Schedule(total_steps=10).factor(step) for step in range(20)} == {1.0}
