"""A request goes to the replica that would finish it first."""

from __future__ import annotations

import pytest

from orchestrator.core.replicas import Replica, by_finish


def replica(name: str, running: int, token_s: float | None) -> Replica:
    return Replica(deployment=name, running=running, token_s=token_s)


@pytest.mark.parametrize(
    ("replicas", "order"),
    [
        ([replica("a", 0, 0.2), replica("b", 0, 0.1)], ["b", "a"]),
        ([replica("a", 0, 0.1), replica("b", 3, 0.1)], ["a", "b"]),
        ([replica("slow", 0, 0.3), replica("busy", 1, 0.1)], ["busy", "slow"]),
        ([replica("slow", 0, 0.3), replica("busy", 3, 0.1)], ["slow", "busy"]),
        ([replica("a", 1, 0.1), replica("new", 0, None)], ["new", "a"]),
        ([replica("a", 0, 0.1), replica("new", 1, None)], ["a", "new"]),
        ([replica("b", 0, None), replica("a", 0, None)], ["a", "b"]),
    ],
)
def test_what_counts_is_when_the_answer_would_be_finished(replicas: list[Replica], order: list[str]) -> None:
    assert by_finish(replicas) == order


def test_many_answers_go_where_each_of_them_costs_least() -> None:
    replicas = [replica("fast", 3, 0.1), replica("slow", 0, 0.3)]
    assert by_finish(replicas, answers=1)[0] == "slow"
    assert by_finish(replicas, answers=4)[0] == "fast"
