"""Whose turn it is to compute: one task at a time, in the thread that brings it where nothing waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from model_worlds import wait_for

from workers.errors import RequestRefused
from workers.inference.compute import ComputeThread


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    made = ComputeThread("compute", on_idle=lambda: None)
    yield made
    made.close()


def test_an_offered_task_and_what_follows_it_run_in_the_thread_that_brings_it(compute: ComputeThread) -> None:
    ran: list[tuple[str, int]] = []
    note = lambda name: ran.append((name, threading.get_ident()))  # noqa: E731

    def task() -> None:
        compute.follow_up(lambda: note("after"))
        note("task")

    compute.offer(task)
    assert ran == [("task", threading.get_ident()), ("after", threading.get_ident())]


def test_an_offered_task_waits_its_turn_behind_what_runs(compute: ComputeThread) -> None:
    going, gate, ran = threading.Event(), threading.Event(), []

    def long() -> None:
        going.set()
        gate.wait(10)
        ran.append("long")

    compute.submit(long)
    assert going.wait(10)
    compute.offer(lambda: ran.append("offered"))
    assert ran == []
    gate.set()
    wait_for(lambda: ran == ["long", "offered"], "both tasks")


def test_what_comes_while_another_thread_has_the_turn_is_run_after_it(compute: ComputeThread) -> None:
    ran: list[str] = []

    def task() -> None:
        threading.Thread(target=lambda: compute.submit(lambda: ran.append("other"))).start()
        wait_for(lambda: compute._tasks, "the other's task")
        ran.append("offered")

    compute.offer(task)
    wait_for(lambda: ran == ["offered", "other"], "both tasks")


def test_two_tasks_never_run_at_once(compute: ComputeThread) -> None:
    inside, most, count = 0, 0, 0

    def task() -> None:
        nonlocal inside, most, count
        inside += 1
        most, count = max(most, inside), count + 1
        inside -= 1

    def bring(way: str) -> None:
        for _ in range(500):
            getattr(compute, way)(task)

    threads = [
        threading.Thread(target=bring, args=(way,)) for way in ("offer", "offer", "submit", "follow_up")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    wait_for(lambda: count == 2000, "all tasks")
    assert most == 1


def test_a_task_that_fails_does_not_keep_the_turn(compute: ComputeThread) -> None:
    compute.offer(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert compute.call(lambda: 7, 10) == 7


def test_what_another_threads_turn_made_due_is_looked_at_soon() -> None:
    due = threading.Event()
    told = threading.Event()

    def on_idle() -> None:
        if due.is_set():
            told.set()

    compute = ComputeThread("compute", on_idle=on_idle)
    compute.offer(due.set)
    assert told.wait(10)
    compute.close()


def test_a_closed_one_takes_nothing(compute: ComputeThread) -> None:
    compute.close()
    for bring in (compute.submit, compute.offer):
        with pytest.raises(RequestRefused, match="ending"):
            bring(lambda: None)


def test_between_two_long_tasks_go_those_that_waited_by_the_end_of_the_first(compute: ComputeThread) -> None:
    ran: list[str] = []
    going, gate = threading.Event(), threading.Event()

    def first() -> None:
        going.set()
        gate.wait(10)

    compute.submit(first)
    assert going.wait(10)
    for number in range(3):
        compute.submit(lambda number=number: ran.append(f"long {number}"), long=True)
    compute.submit(lambda: (ran.append("a"), compute.submit(lambda: ran.append("late")))[0])
    compute.submit(lambda: ran.append("b"))
    gate.set()
    wait_for(lambda: len(ran) == 6, "all tasks")
    assert ran == ["long 0", "a", "b", "long 1", "late", "long 2"]


def test_neither_kind_of_task_keeps_the_other_out(compute: ComputeThread) -> None:
    ran: list[str] = []
    more = {"long": True, "short": False}

    def again(kind: str) -> None:
        ran.append(kind)
        if len(ran) < 200:
            compute.follow_up(lambda: again(kind), long=more[kind])

    for kind, long in more.items():
        compute.submit(lambda kind=kind: again(kind), long=long)
    wait_for(lambda: len(ran) >= 200, "all tasks")
    assert 80 <= ran[:200].count("long") <= 120


def test_what_is_offered_waits_for_a_long_task_that_waits(compute: ComputeThread) -> None:
    ran: list[str] = []

    def task() -> None:
        threading.Thread(target=lambda: compute.submit(lambda: ran.append("long"), long=True)).start()
        wait_for(lambda: compute._long, "the long task")
        ran.append("offered")

    compute.offer(task)
    wait_for(lambda: ran == ["offered", "long"], "both tasks")
