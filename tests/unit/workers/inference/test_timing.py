"""Where the time of tokens went: told by durations, adding up to what passed at the head."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_worlds import SLOW, THREE, MakeRing, wait_for

from workers.inference.timing import Pass, Spent, told, way_of_row

seconds = st.floats(0, 100)
PLACEMENTS = [THREE, [("a", 4, 6), ("b", 0, 4)], [("a", 0, 0), ("b", 0, 3), ("c", 3, 6)], [("a", 0, 6)]]


@given(seconds, seconds, st.lists(st.tuples(seconds, seconds), max_size=4), seconds, seconds)
def test_the_parts_of_one_pass_add_up_to_the_time_between_two_tokens(
    before_s: float, head_s: float, spent: list[tuple[float, float]], wire_s: float, after_s: float
) -> None:
    way = tuple(Spent(f"n{place}", False, *both) for place, both in enumerate(spent))
    round_s = sum(map(sum, spent)) + wire_s
    elapsed_s = before_s + head_s + round_s + after_s
    split = told(
        elapsed_s=elapsed_s, head="h", head_compute_s=head_s, paced=False, passes=[Pass(round_s, way)]
    )
    assert split["compute_s"] + split["queue_s"] + split["wire_s"] == pytest.approx(elapsed_s)
    assert split["wire_s"] == pytest.approx(wire_s, abs=1e-6)
    assert split["nodes"][0] == ["h", head_s, pytest.approx(before_s + after_s, abs=1e-6)]
    assert [one[0] for one in split["nodes"][1:]] == [one.node for one in way]


def test_a_node_whose_computing_is_emulated_makes_the_whole_so() -> None:
    way = (Spent("b", False, 1.0, 0.0), Spent("c", True, 1.0, 0.0))
    split = told(elapsed_s=3.0, head="a", head_compute_s=0.0, paced=False, passes=[Pass(2.5, way)])
    assert split["emulated"] is True


def test_times_of_a_row_that_cannot_be_are_none_and_nodes_without_names_are_numbered() -> None:
    assert way_of_row([("b", True)], [-5, 2_000_000_000]) == (Spent("b", True, 2.0, 0.0),)
    assert [one.node for one in way_of_row([], [1, 1, 2, 2])] == ["node 2 of the ring", "node 3 of the ring"]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_token_says_where_its_time_went(make_ring: MakeRing, placement: Any) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(placement)
    ring.generate("a", "r", max_tokens=8)
    ring.wait_done("r")
    names = [node for node, _, _ in placement]
    layers = {node: end - first for node, first, end in placement}
    for token in ring.tokens("r"):
        parts_s = token["compute_s"] + token["queue_s"] + token["wire_s"]
        assert parts_s == pytest.approx(token["elapsed_s"], rel=0.01), "a short prompt is one piece"
        assert token["emulated"] is True
        assert [node for node, _, _ in token["nodes"]] == names
        for node, compute_s, _ in token["nodes"]:
            assert compute_s >= 0.002 * layers[node], "paced: 2 ms for a layer"


def test_rows_that_wait_for_a_busy_node_are_told_as_queued_there(make_ring: MakeRing) -> None:
    ring = make_ring(pacing=True, layer_overhead_s=0.004)
    ring.deploy([("a", 0, 1), ("b", 1, 6)])
    for request in "rstu":
        ring.generate("a", request, max_tokens=12)
    for request in "rstu":
        ring.wait_done(request)
    tokens = [token for request in "rstu" for token in ring.tokens(request)[2:]]
    waits_s = [{node: queue_s for node, _, queue_s in token["nodes"]} for token in tokens]
    at_a_s, at_b_s = (statistics.median(one[node] for one in waits_s) for node in "ab")
    assert at_b_s > 2 * at_a_s, "b has five layers, and two groups come in turn"


def test_a_long_prompts_pieces_are_counted_at_every_node(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.inference.head.CHUNK_ROWS", 4)
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r", prompt="x" * 40, max_tokens=1)
    ring.wait_done("r")
    (token,) = ring.tokens("r")
    assert all(compute_s >= 10 * 0.004 for _, compute_s, _ in token["nodes"]), "ten pieces, two layers each"


def test_what_came_before_a_change_of_route_is_not_counted_again(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=30)
    wait_for(lambda: len(ring.tokens("r")) > 3, "some tokens")
    ring.deploy([("a", 0, 5), ("c", 5, 6)], 2)
    ring.wait_done("r")
    after = [token for token in ring.tokens("r") if token["epoch"] == 2 and not token["replayed"]]
    assert len(after) > 10
    assert all([node for node, _, _ in token["nodes"]] == ["a", "c"] for token in after)
