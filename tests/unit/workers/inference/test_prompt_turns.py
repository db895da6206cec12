"""Prompts in the ring: no more than keep it busy, rows in between, none left when a request ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from model_worlds import OTHER_CUTS, THREE, MakeRing, Ring, wait_for

from workers.inference import head
from workers.inference.stage import Place, Rows, Stage

LONG = "x" * 60


class Gate:
    """Holds up what a node has to compute for prompts; notes what it began, in its order."""

    def __init__(self, stage: Stage) -> None:
        self.began: list[tuple[int, int]] = []
        self.opened = threading.Event()
        self._prefill = stage.prefill
        self._step = stage.step
        stage.prefill = self._held  # type: ignore[method-assign]
        stage.step = self._stepped  # type: ignore[method-assign]

    def _held(self, number: int, position: int, rows: Rows) -> Rows:
        self.began.append((number, position))
        assert self.opened.wait(20)
        return self._prefill(number, position, rows)

    def _stepped(self, places: list[Place], rows: Rows) -> Any:
        self.began.extend((place.number, -1) for place in places)
        return self._step(places, rows)


@pytest.fixture
def ring(make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch) -> Ring:
    monkeypatch.setattr(head, "CHUNK_ROWS", 4)
    made = make_ring()
    made.deploy(THREE)
    return made


@pytest.fixture
def gate(ring: Ring) -> Iterator[Gate]:
    made = Gate(stage_of(ring, "b"))
    yield made
    made.opened.set()


def stage_of(ring: Ring, node: str, epoch: int = 1) -> Stage:
    return ring.hosts[node]._deployments.find("d").stages[epoch]


def pieces_sent(ring: Ring, sender: str) -> int:
    return sum(f.kind == "activation" for c in ring.channels if c.sender == sender for f in c.sent)


def test_a_prompt_stops_when_as_many_pieces_are_under_way_as_keep_every_stage_busy(
    ring: Ring, gate: Gate
) -> None:
    ring.generate("a", "r", prompt=LONG)
    window = ring.hosts["a"]._deployments.find("d").head._window
    wait_for(lambda: not window.takes_more(), "a full window")
    wait_for(lambda: len(stage_of(ring, "b").pieces) == window.limit_rows // 4 - 1, "the pieces at b")
    assert pieces_sent(ring, "a") == window.limit_rows // 4 == 3, "a ring of two, by default, and one more"
    gate.opened.set()
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference(LONG)[0]
    assert gate.began[:15] == [(1, 4 * place) for place in range(15)]


def test_a_request_that_ends_takes_its_waiting_pieces_out_of_every_queue(ring: Ring, gate: Gate) -> None:
    ring.generate("a", "r", prompt=LONG)
    ring.generate("a", "s", prompt=LONG)
    wait_for(lambda: len(stage_of(ring, "b").pieces) == 2, "waiting pieces")
    ring.ask("a", "cancel", deployment="d", request="r")
    gate.opened.set()
    ring.wait_done("s")
    assert [entry["token"] for entry in ring.tokens("s")] == ring.reference(LONG)[0]
    assert sum(number == 1 for number, _ in gate.began) == 1, "only the one that had begun"
    stages = [stage_of(ring, node) for node in "abc"]
    wait_for(
        lambda: not any(stage._caches or len(stage.pieces) for stage in stages), "empty queues and caches"
    )
    assert ring.hosts["a"]._deployments.find("d").head._window.rows_out == 0


def test_a_route_that_changes_while_pieces_wait_loses_none(ring: Ring, gate: Gate) -> None:
    for request in "rs":
        ring.generate("a", request, prompt=LONG)
    wait_for(lambda: len(stage_of(ring, "b").pieces) == 2, "waiting pieces")
    ring.deploy(OTHER_CUTS, 2)
    gate.opened.set()
    for request in "rs":
        ring.wait_done(request)
        assert [entry["token"] for entry in ring.tokens(request)] == ring.reference(LONG)[0]


def test_single_rows_pass_between_two_pieces_and_prompts_take_turns(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_ROWS", 4)
    ring = make_ring()
    ring.deploy(THREE)
    ring.generate("a", "stream", max_tokens=100)
    wait_for(lambda: len(ring.tokens("stream")) > 3, "the first tokens")
    gate = Gate(stage_of(ring, "b"))
    gate.opened.set()
    for request in "rs":
        ring.generate("a", request, prompt=LONG, max_tokens=1)
    for request in "rs":
        ring.wait_done(request)
        assert [entry["token"] for entry in ring.tokens(request)] == ring.reference(LONG, 1)[0]
    prompts = [number for number, position in gate.began if position >= 0]
    assert sorted(prompts) == [2] * 15 + [3] * 15
    first_end = max(place for place, number in enumerate(prompts) if number == 2)
    assert prompts[:first_end].count(3) >= 10, "the second did not wait for the end of the first"
    ring.wait_done("stream")
    assert [entry["token"] for entry in ring.tokens("stream")] == ring.reference(max_tokens=100)[0]


def test_a_prompt_whose_pieces_are_lost_is_told_as_stalled(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_ROWS", 4)
    ring = make_ring()
    ring.deploy(THREE, request_timeout_s=0.05)
    ring.deaf.add("b")
    ring.generate("a", "r", prompt=LONG)
    wait_for(lambda: any(kind == "stalled" for _, kind, _ in ring.told), "the stall")
    ring.deaf.clear()
    ring.deploy(OTHER_CUTS, 2)
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference(LONG)[0]


@pytest.mark.parametrize("placement", [THREE, [("a", 4, 6), ("b", 0, 4)], [("a", 0, 0), ("b", 0, 6)]])
def test_prompts_of_all_lengths_at_once_give_what_each_gives_alone(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch, placement: Any
) -> None:
    monkeypatch.setattr(head, "CHUNK_ROWS", 5)
    ring = make_ring()
    ring.deploy(placement)
    prompts = {f"r{length}": "y" * length for length in (1, 4, 9, 23, 40, 77)}
    for request, prompt in prompts.items():
        ring.generate("a", request, prompt=prompt)
    for request, prompt in prompts.items():
        ring.wait_done(request)
        assert [entry["token"] for entry in ring.tokens(request)] == ring.reference(prompt)[0], request
