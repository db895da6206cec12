"""A long prompt goes into the ring in pieces: the same tokens, and others' turn in between."""

from __future__ import annotations

from typing import Any

import pytest
from model_worlds import SLOW, MakeRing, Ring, config_with, tiny_model, wait_for

from workers.inference import head

PLACEMENTS = [
    [("a", 0, 2), ("b", 2, 4), ("c", 4, 6)],
    [("a", 0, 0), ("b", 0, 3), ("c", 3, 6)],  # a head without layers
    [("a", 4, 6), ("b", 0, 2), ("c", 2, 4)],  # a head with the last layers
    [("a", 0, 6)],
]
PROMPT = "a prompt that is longer than a piece"


@pytest.fixture
def entering(make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch) -> Ring:
    """Return a slow ring into which a prompt has begun to go, in pieces of two rows."""
    monkeypatch.setattr(head, "CHUNK_ROWS", 2)
    ring = make_ring(**SLOW)
    ring.deploy(PLACEMENTS[0])
    ring.generate("a", "r", prompt=PROMPT)
    wait_for(lambda: any(f.kind == "activation" for c in ring.channels for f in c.sent), "a piece")
    return ring


@pytest.mark.parametrize("rows", [1, 5, 35, 36])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_prompt_in_pieces_gives_the_tokens_of_a_whole_one(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch, placement: Any, rows: int
) -> None:
    monkeypatch.setattr(head, "CHUNK_ROWS", rows)
    ring = make_ring()
    ring.deploy(placement)
    ring.generate("a", "r", prompt=PROMPT)
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference(PROMPT)[0]


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "mistral", "sliding_window": 8}, {"model_type": "qwen3"}, {"model_type": "gpt2"}],
)
def test_every_family_takes_pieces(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(head, "CHUNK_ROWS", 5)
    ring = make_ring(model=tiny_model(**changes))
    ring.deploy(PLACEMENTS[0], config=config_with(**changes))
    ring.generate("a", "r", prompt=PROMPT)
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference(PROMPT)[0]


def test_pieces_are_announced_and_only_the_last_row_goes_back_to_the_head(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_ROWS", 10)
    ring = make_ring()
    ring.deploy(PLACEMENTS[0])
    ring.generate("a", "r", prompt=PROMPT, max_tokens=1)
    ring.wait_done("r")
    sent = {
        channel.sender: [
            (len(frame.tensors["x"]), frame.fields["position"], frame.fields["partial"])
            for frame in channel.sent
            if frame.kind == "activation"
        ]
        for channel in ring.channels
    }
    pieces = [(10, 0, True), (10, 10, True), (10, 20, True), (6, 30, False)]
    assert sent == {"a": pieces, "b": pieces, "c": [(1, 35, False)]}


def test_a_route_that_changes_within_a_prompt_begins_it_again(entering: Ring) -> None:
    assert not entering.tokens("r"), "the prompt is under way"
    entering.deploy([("a", 0, 1), ("b", 1, 5), ("c", 5, 6)], 2)
    entering.wait_done("r")
    assert [entry["token"] for entry in entering.tokens("r")] == entering.reference(PROMPT)[0]


def test_a_request_that_ends_within_its_prompt_leaves_no_cache(entering: Ring) -> None:
    entering.ask("a", "cancel", deployment="d", request="r")
    assert entering.wait_done("r")["finish_reason"] == "cancelled"
    stages = [host._deployments.find("d").stages[1] for host in entering.hosts.values()]
    released = [channel for channel in entering.channels if channel.sender in "ab"]
    wait_for(
        lambda: all(c.sent and c.sent[-1].kind == "release" for c in released), "the release on its way round"
    )
    wait_for(lambda: not any(stage._caches for stage in stages), "the release of all caches")


def test_while_a_long_prompt_comes_in_the_others_tokens_go_on(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_ROWS", 3)
    ring = make_ring(**SLOW)
    ring.deploy(PLACEMENTS[0])
    ring.generate("a", "running", max_tokens=100)
    wait_for(lambda: len(ring.tokens("running")) > 3, "the first tokens")
    ring.generate("a", "long", prompt="x" * 90, max_tokens=2)
    before = len(ring.tokens("running"))
    wait_for(lambda: ring.tokens("long"), "the first token of the long prompt")
    assert len(ring.tokens("running")) - before >= 3, "with a whole prompt it is one"
