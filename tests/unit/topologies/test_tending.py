"""When a part of a testbed that has ended is started again, and when it is left."""

from __future__ import annotations

from topologies.tending import LIMIT, Tended


class Part:
    name = "orchestrator"

    def __init__(self) -> None:
        self.ended: int | None = None
        self.stopped = False

    def log_end(self) -> str:
        return "its log ends: no port"

    def stop(self) -> None:
        self.stopped = True


class Parts:
    """Starts parts and keeps them; `fault` is raised instead."""

    def __init__(self) -> None:
        self.started: list[Part] = []
        self.fault: Exception | None = None

    def start(self) -> Part:
        if self.fault is not None:
            raise self.fault
        self.started.append(Part())
        return self.started[-1]

    @property
    def newest(self) -> Part:
        return self.started[-1]


def tended() -> tuple[Tended, Parts]:
    parts = Parts()
    return Tended(parts.start(), parts.start), parts


def test_a_part_that_runs_is_left_alone() -> None:
    tending, parts = tended()
    assert tending.tend(0.0) is None
    assert len(parts.started) == 1


def test_a_killed_part_is_started_again_after_a_pause() -> None:
    tending, parts = tended()
    parts.newest.ended = -9
    assert tending.tend(10.0) == "ended with status -9; it is started again in 1 s"
    assert tending.tend(10.9) is None
    assert tending.tend(11.0) == "ended with status -9 and was started again (1 of 5 times)"
    assert tending.part is parts.newest
    assert len(parts.started) == 2
    assert tending.tend(12.0) is None


def test_pauses_grow_and_a_part_that_ends_too_often_is_left_with_the_reason() -> None:
    tending, parts = tended()
    now_s, pauses = 0.0, []
    for _ in range(LIMIT):
        parts.newest.ended = 1
        told = tending.tend(now_s)
        assert told is not None
        pauses.append(float(told.split(" in ")[1].removesuffix(" s")))
        now_s += pauses[-1]
        assert "started again" in (tending.tend(now_s) or "")
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0]
    parts.newest.ended = 1
    told = tending.tend(now_s) or ""
    assert "6 times within 300 s, so it is not started again" in told
    assert told.endswith("its log ends: no port")
    assert tending.tend(now_s + 1000.0) is None
    assert len(parts.started) == LIMIT + 1


def test_ends_long_ago_do_not_count() -> None:
    tending, parts = tended()
    for hour in range(3 * LIMIT):
        parts.newest.ended = 1
        assert "in 1 s" in (tending.tend(3600.0 * hour) or "")
        tending.tend(3600.0 * hour + 1.0)
    assert len(parts.started) == 3 * LIMIT + 1


def test_a_part_that_cannot_be_started_is_tried_again_as_one_that_ended() -> None:
    tending, parts = tended()
    parts.newest.ended = 1
    tending.tend(0.0)
    parts.fault = OSError("no memory")
    assert tending.tend(1.0) == "cannot be started again: no memory; it is started again in 2 s"
    parts.fault = None
    assert "was started again (2 of 5 times)" in (tending.tend(3.0) or "")


def test_what_is_stopped_on_purpose_is_not_started_again() -> None:
    tending, parts = tended()
    tending.stop()
    assert parts.newest.stopped
    parts.newest.ended = 0
    assert tending.tend(100.0) is None
    assert len(parts.started) == 1
