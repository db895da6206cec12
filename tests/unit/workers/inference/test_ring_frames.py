"""Frames between the nodes of a ring: late, broken, forged ones, and connections that end."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from model_worlds import SLOW, THREE, MakeRing, wait_for

from workers.errors import WireError
from workers.inference import ring_frames
from workers.wire.frames import Frame


def activation(**changes: Any) -> Frame:
    fields = {"deployment": "d", "epoch": 1, "number": 1, "position": 0, "sequence": 1, "way": []}
    fields.update(changes)
    x = fields.pop("x", np.zeros((1, 32), dtype=np.float32))
    return Frame("activation", fields=fields, tensors={} if x is None else {"x": x})


def activations(rows: Any = ((1, 5, 1), (2, 6, 1)), dtype: type = np.int64, together: int = 4) -> Frame:
    fields = {"deployment": "d", "epoch": 1, "together": together}
    places, x = (
        np.array(rows, dtype=dtype).reshape(len(rows), -1 if len(rows) else 3),
        np.zeros((2, 32), dtype=np.float32),
    )
    return Frame("activations", fields=fields, tensors={"x": x, "places": places})


@pytest.mark.parametrize(
    ("sender", "frame", "complaint"),
    [
        ("c", activation(), "whose rows come from a"),
        ("mallory", activation(), "whose rows come from a"),
        ("mallory", Frame("release", fields={"deployment": "d", "epoch": 1, "number": 1}), "come from a"),
        ("a", activation(x=np.zeros((1, 31), dtype=np.float32)), "x must be"),
        ("a", activation(x=np.zeros((1, 32), dtype=np.float16)), "x must be"),
        ("a", activation(x=np.zeros(32, dtype=np.float32)), "x must be"),
        ("a", activation(x=np.zeros((0, 32), dtype=np.float32)), "0 rows"),
        ("a", activation(x=np.zeros((129, 32), dtype=np.float32)), "129 rows"),
        ("a", activation(position=128), "1 rows at 128"),
        ("a", activation(x=None), "x must be"),
        ("a", activation(position=-1), "position"),
        ("a", activation(sequence="1"), "sequence"),
        ("a", activation(number="r"), "number"),
        ("a", activations(rows=[]), "0 rows, where"),
        ("a", activations(rows=[(1, 5, 1)]), "2 rows of 1"),
        ("a", activations(rows=[(number, 5, 1) for number in range(65)]), "65 rows, where 1 to 64"),
        ("a", activations(rows=[(1, 5, 1), (1, 6, 1)]), "two rows of one request"),
        ("a", activations(rows=[(1, 5), (2, 5)]), "places must be i64"),
        ("a", activations(rows=[(1, 5, 1, 9), (2, 5, 1, 9)]), "places must be i64"),
        ("a", activations(rows=[(number, 5, 1, *[0] * 130) for number in (1, 2)]), "at most 64 nodes"),
        ("a", activation(way=None), "way must be a list"),
        ("a", activation(way=[["a", False, 0.0, 0.0]] * 65), "way must be a list"),
        ("a", activation(way=[["a", False, 0.0]]), "way must be a list"),
        ("a", activation(way=[["", False, 0.0, 0.0]]), "way must be a list"),
        ("a", activation(way=[["a", 0, 0.0, 0.0]]), "way must be a list"),
        ("a", activation(way=[["a", False, float("nan"), 0.0]]), "seconds from 0"),
        ("a", activation(way=[["a", False, -1.0, 0.0]]), "seconds from 0"),
        ("a", Frame("passed", fields={**activation().fields, "sequence": -1}), "sequence"),
        ("a", Frame("passed", fields={**activation().fields, "way": [[]]}), "way must be a list"),
        ("mallory", Frame("passed", fields=activation().fields), "come from a"),
        ("a", activations(dtype=np.int32), "places must be i64"),
        ("a", activations(rows=[(1, 5, 1), (2, 128, 1)]), "1 rows at 128"),
        ("a", activations(rows=[(1, 5, 1), (2, -1, 1)]), "must not be below 0"),
        ("a", activations(together=65), "together"),
        ("a", Frame("activations", fields=activations().fields), "places must be"),
        ("mallory", activations(), "whose rows come from a"),
        ("a", Frame("gossip", fields={"deployment": "d", "epoch": 1, "number": 1}), "not taken"),
    ],
)
def test_frames_that_break_the_protocol_close_their_connection_only(
    make_ring: MakeRing, sender: str, frame: Frame, complaint: str
) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    with pytest.raises(WireError, match=complaint):
        ring.hosts["b"].on_peer_frame(sender, frame)
    ring.generate("a", "r")
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference()[0]


@pytest.mark.parametrize("change", [{"epoch": 9}, {"deployment": "other"}])
def test_frames_for_what_is_not_held_are_dropped(make_ring: MakeRing, change: dict[str, Any]) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    ring.hosts["b"].on_peer_frame("a", activation(**change))
    assert ring.hosts["b"].holdings() == ["d/1:2-4"]


def test_rows_that_do_not_follow_fail_the_request_with_the_reason(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=50)
    wait_for(lambda: ring.tokens("r"), "a token")
    ring.hosts["b"].on_peer_frame("a", activation(position=100))
    assert ring.wait_done("r")["detail"].startswith("missing-rows: b: ")


def test_broken_rows_end_in_an_error_and_not_in_tokens(make_ring: MakeRing) -> None:
    ring = make_ring()
    name = "model.layers.3.mlp.down_proj.weight"
    ring.parameters[name] = torch.full_like(ring.parameters[name], 3e38)
    ring.deploy(THREE)
    ring.generate("a", "r")
    assert "not finite" in ring.wait_done("r")["detail"]
    assert ring.tokens("r") == []


def test_a_late_answer_is_taken_and_one_of_another_pass_is_not(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE, request_timeout_s=0.05)
    ring.deaf.add("b")
    ring.generate("a", "r")
    wait_for(lambda: any(kind == "stalled" for _, kind, _ in ring.told), "the stall")
    rows = np.ones((5, 32), dtype=np.float32)
    for sequence, tokens in ((7, 0), (0, 0), (1, 1), (1, 1)):
        ring.hosts["a"].on_peer_frame("c", activation(sequence=sequence, x=rows.copy()))
        ring.ask("a", "cancel", deployment="d", request="none")  # answered after what came before it
        assert len(ring.tokens("r")) == tokens


def test_a_broken_connection_is_made_again(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r1")
    ring.wait_done("r1")
    before = len(ring.channels)
    for channel in ring.channels:
        channel.close()
    ring.generate("a", "r2")
    ring.wait_done("r2")
    assert [entry["token"] for entry in ring.tokens("r2")] == ring.reference()[0]
    assert len(ring.channels) == before + 3


def test_a_route_is_known_by_the_very_fields_and_for_their_sender(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    stage = ring.hosts["b"]._deployments.find("d").stages[1]
    routes, frame = ring_frames.Routes(), activations()
    routes.learn("a", frame, stage, 4)
    assert routes.find("a", frame) == (stage, 4)
    assert routes.find("c", frame) is None
    assert routes.find("a", activations()) is None  # the same words, but not seen and checked
    stage.closed = True
    assert routes.find("a", frame) is None


def test_routes_keep_no_dropped_stage_and_no_more_than_some() -> None:
    class Dropped:
        closed = False

    routes, stage, frame = ring_frames.Routes(), Dropped(), activations()
    routes.learn("a", frame, stage, 4)  # type: ignore[arg-type]
    assert routes.find("a", frame) == (stage, 4)
    del stage
    gc.collect()
    assert routes.find("a", frame) is None
    kept, others = Dropped(), [activations() for _ in range(200)]
    for other in others:
        routes.learn("a", other, kept, 4)  # type: ignore[arg-type]
    assert len(routes._found) <= ring_frames._ROUTES_KEPT


def test_the_same_frame_after_its_epoch_has_gone_is_dropped(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    host, frame = ring.hosts["b"], activations(rows=[(1, 0, 1), (2, 0, 1)])
    host.on_peer_frame("a", frame)
    ring.ask("b", "shard.retire", deployment="d", epoch=1)
    host.on_peer_frame("a", frame)  # no complaint, and no cache
    assert host.caches()["used_bytes"] == {}
