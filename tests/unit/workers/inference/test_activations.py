"""Rows on the wire: exact, in half the bytes, or in a quarter; and what is refused of them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_worlds import Ring

from workers.errors import RequestRefused, WireError
from workers.inference import activations
from workers.inference.activations import WIRE
from workers.wire.frames import DTYPES, Frame

THREE = [("a", 0, 2), ("b", 2, 4), ("c", 4, 6)]


def some_rows(count: int, hidden: int, seed: int, size: float = 1.0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, hidden), dtype=np.float32) * np.float32(size)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 99), st.sampled_from((1e-6, 1.0, 1e3)))
def test_rows_arrive_as_near_as_their_precision_says(count: int, hidden: int, seed: int, size: float) -> None:
    rows = some_rows(count, hidden, seed, size)
    most = {"fp32": 0.0, "fp16": 2**-11, "int8": 1 / 254}
    for wire in WIRE:
        sent = activations.packed(rows, wire)
        assert sum(part.nbytes for part in sent.values()) == count * activations.bytes_of(wire, hidden)
        found = activations.unpacked(sent, wire, hidden)
        assert found.dtype == np.float32
        greatest = np.abs(rows).max(axis=1, keepdims=True)
        assert (np.abs(found - rows) <= greatest * (most[wire] + 1e-6 * (wire == "int8")) + 3e-8).all()


@pytest.mark.parametrize("wire", WIRE)
def test_a_row_of_zeros_arrives_as_one(wire: str) -> None:
    rows = np.zeros((2, 4), dtype=np.float32)
    assert (activations.unpacked(activations.packed(rows, wire), wire, 4) == 0).all()


@pytest.mark.parametrize("wire", WIRE)
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_and_in_its_row(wire: str, broken: float) -> None:
    rows = some_rows(2, 4, 0)
    rows[1, 2] = broken
    found = activations.unpacked(activations.packed(rows, wire), wire, 4)
    assert np.isfinite(found[0]).all()
    assert not np.isfinite(found[1]).all()


def test_what_is_too_large_for_fp16_is_seen_to_be() -> None:
    rows = np.full((1, 4), 1e6, dtype=np.float32)
    assert not np.isfinite(activations.unpacked(activations.packed(rows, "fp16"), "fp16", 4)).any()
    assert activations.unpacked(activations.packed(rows, "int8"), "int8", 4) == pytest.approx(rows)


ARRAYS = st.builds(
    lambda dtype, shape: np.zeros(shape, dtype),
    st.sampled_from(sorted(DTYPES.values(), key=str)),
    st.lists(st.sampled_from((0, 1, 2, 31, 32, 33)), max_size=3),
)
TENSORS = st.dictionaries(st.sampled_from(("x", "scale", "places", "y")), ARRAYS)


@settings(max_examples=300, deadline=None)
@given(TENSORS, st.sampled_from(WIRE))
def test_only_tensors_of_the_agreed_form_are_taken(tensors: dict[str, Any], wire: str) -> None:
    x = tensors.get("x")
    expected = activations.shapes(wire, len(x) if x is not None and x.ndim else 1, 32)
    right = all(
        name in tensors
        and tensors[name].dtype == dtype
        and tensors[name].shape == shape
        and len(tensors[name])
        for name, (dtype, shape) in expected.items()
    )
    if right:
        assert activations.unpacked(tensors, wire, 32).shape == x.shape
    else:
        with pytest.raises(WireError, match=r"x must be|x has 0 rows|scale must be"):
            activations.unpacked(tensors, wire, 32)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(("activation", "activations", "passed")),
    TENSORS,
    st.dictionaries(
        st.sampled_from(("number", "position", "sequence", "together", "partial", "way")),
        st.one_of(st.integers(-2, 200), st.none(), st.text(max_size=3), st.booleans(), st.floats()),
    ),
    st.sampled_from(WIRE),
)
def test_no_frame_hurts_a_ring(kind: str, tensors: dict[str, Any], wrong: dict[str, Any], wire: str) -> None:
    ring = Ring()
    try:
        ring.deploy(THREE, wire=wire)
        usual = {"number": 1, "position": 0, "sequence": 1, "together": 1, "partial": False, "way": []}
        fields = {"deployment": "d", "epoch": 1, **usual, **wrong}
        with contextlib.suppress(WireError):
            ring.hosts["b"].on_peer_frame("a", Frame(kind, fields=fields, tensors=tensors))
        ring.generate("a", "r", max_tokens=3)
        assert ring.wait_done("r")["finish_reason"] == "length"
    finally:
        ring.close()


@pytest.mark.parametrize("wire", WIRE)
def test_a_ring_sends_prompts_and_tokens_in_the_precision_asked_for(wire: str) -> None:
    ring = Ring()
    try:
        ring.deploy(THREE, wire=wire)
        for number in range(4):
            ring.generate("a", f"r{number}", prompt="a prompt")
        for number in range(4):
            assert ring.wait_done(f"r{number}")["finish_reason"] == "length"
        sent = [frame for channel in ring.channels for frame in channel.sent if "x" in frame.tensors]
        assert {frame.kind for frame in sent} == {"activation", "activations"}
        expected = activations.shapes(wire, 1, 32)["x"][0]
        assert all(frame.tensors["x"].dtype == expected for frame in sent)
        tokens = [entry["token"] for entry in ring.tokens("r0")]
        assert wire != "fp32" or tokens == ring.reference("a prompt")[0]
        assert len({tuple(entry["token"] for entry in ring.tokens(f"r{n}")) for n in range(4)}) == 1
    finally:
        ring.close()


@pytest.mark.parametrize(("key", "value"), [("wire", "int4"), ("compute", "int8"), ("wire", 16)])
def test_a_precision_that_is_not_known_is_refused(key: str, value: object) -> None:
    ring = Ring()
    try:
        with pytest.raises(RequestRefused, match=f"{key} is .*must be one of fp32"):
            ring.prepare(THREE, 1, **{key: value})
        assert ring.hosts["a"].holdings() == []
    finally:
        ring.close()


def test_parameters_of_another_precision_than_said_are_refused() -> None:
    ring = Ring()
    try:
        with pytest.raises(RequestRefused, match="is f32; parameters are sent as bf16 here"):
            ring.prepare(THREE, 1, compute="bf16")
        assert ring.hosts["a"]._budget.used_bytes == 0
    finally:
        ring.close()


def test_a_model_held_in_16_bits_takes_half_the_memory() -> None:
    taken = {}
    for compute in ("fp32", "bf16"):
        ring = Ring(compute=compute)
        try:
            ring.deploy(THREE)
            ring.generate("a", "r")
            ring.wait_done("r")
            units = ring.hosts["a"]._deployments.store._units.values()
            taken[compute] = sum(unit.size_bytes for unit in units)
        finally:
            ring.close()
    assert taken["bf16"] * 2 == taken["fp32"]


@pytest.mark.parametrize(("wire", "reason"), [("fp16", "do not fit wire fp16"), ("int8", "length")])
def test_rows_that_do_not_fit_end_their_request_with_the_way_out(wire: str, reason: str) -> None:
    ring = Ring()
    try:
        name = "model.layers.1.mlp.down_proj.weight"
        ring.parameters[name] = ring.parameters[name] * 1e5
        ring.deploy(THREE, wire=wire)
        ring.generate("a", "r")
        done = ring.wait_done("r")
        assert reason in done["detail"] or reason == done["finish_reason"]
    finally:
        ring.close()
