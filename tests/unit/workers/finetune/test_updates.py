"""Updates on the wire: what each form keeps, what it weighs, and which garbage is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.finetune import updates
from workers.finetune.updates import ENCODINGS, UpdateFault

SHAPES = {"w": (5, 8), "b": (8,), "t": (2, 3, 4)}


def update(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 1e-3, shape).astype(np.float32) for name, shape in SHAPES.items()}


def decoded(sent: dict[str, Any], encoding: str, ratio: float = 0.25) -> dict[str, Any]:
    return updates.decode(sent, SHAPES, encoding, ratio=ratio)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_form_comes_back_with_its_shapes_and_weighs_what_is_said(encoding: str) -> None:
    sent = updates.encode(update(), encoding, ratio=0.25)
    assert set(sent) == updates.wire_names(SHAPES, encoding)
    assert sum(a.nbytes for a in sent.values()) == updates.wire_bytes(SHAPES, encoding, ratio=0.25)
    back = decoded(sent, encoding)
    assert {name: (array.shape, array.dtype) for name, array in back.items()} == {
        name: (shape, np.dtype(np.float32)) for name, shape in SHAPES.items()
    }


def test_how_much_each_form_loses() -> None:
    given = update()
    for encoding, limit in (("fp32", 0.0), ("fp16", 1e-3), ("int8", 1 / 254 + 1e-6)):
        back = decoded(updates.encode(given, encoding, ratio=1), encoding)
        for name, values in given.items():
            assert np.abs(back[name] - values).max() <= limit * np.abs(values).max()
    back = decoded(updates.encode(given, "topk", ratio=0.25), "topk")
    assert np.count_nonzero(back["w"]) == 10
    smallest_sent = np.abs(back["w"][back["w"] != 0]).min()
    assert (np.abs(given["w"][back["w"] == 0]) <= smallest_sent).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["fp16", "int8", "topk"]))
def test_with_error_feedback_nothing_is_lost_for_good(seed: int, encoding: str) -> None:
    rng = np.random.default_rng(seed)
    residual, sent_sum, true_sum = np.zeros((5, 8), np.float32), np.zeros((5, 8)), np.zeros((5, 8))
    for _ in range(5):
        step = rng.normal(0, 1e-3, (5, 8)).astype(np.float32)
        true_sum += step
        owed = {"w": step + residual}
        back = updates.decode(updates.encode(owed, encoding, ratio=0.2), {"w": (5, 8)}, encoding, ratio=0.2)
        residual = owed["w"] - back["w"]
        sent_sum += back["w"]
    np.testing.assert_allclose(sent_sum + residual, true_sum, atol=1e-8)


def test_an_update_of_nothing_stays_nothing() -> None:
    zeros = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for encoding in ENCODINGS:
        assert not any(
            array.any() for array in decoded(updates.encode(zeros, encoding, ratio=0.25), encoding).values()
        )


def test_what_fp16_cannot_hold_is_refused_by_the_sender() -> None:
    with pytest.raises(UpdateFault, match="w holds"):
        updates.encode({"w": np.full((2, 2), 1e6, np.float32)}, "fp16", ratio=1)


def changed(encoding: str, name: str, change: Any) -> dict[str, Any]:
    sent = updates.encode(update(), encoding, ratio=0.25)
    sent[name] = change(sent[name].copy())
    return sent


def put(place: Any, value: float) -> Any:
    def change(array: Any) -> Any:
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("encoding", "name", "change", "words"),
    [
        ("fp32", "w", put((0, 0), np.nan), "not finite"),
        ("fp16", "w", put((0, 0), np.inf), "not finite"),
        ("fp16", "w", lambda a: a.astype(np.float32), "must be float16"),
        ("int8", "w:scale", put(0, np.nan), "not finite"),
        ("int8", "w:scale", put(0, 3e38), "not finite"),
        ("int8", "w:scale", put(0, -1.0), "below 0"),
        ("int8", "w:scale", lambda a: a[:1], "must be float32"),
        ("int8", "w", lambda a: a.reshape(8, 5), "must be int8"),
        ("topk", "w:index", put(0, -1), "must rise"),
        ("topk", "w:index", put(-1, 40), "must rise"),
        ("topk", "w:index", put(-1, 2**31 - 1), "must rise"),
        ("topk", "w:index", lambda a: a[::-1].copy(), "must rise"),
        ("topk", "w:index", lambda a: np.repeat(a[:1], len(a)), "must rise"),
        ("topk", "w:index", lambda a: a[:-1], "must be int32"),
        ("topk", "w:value", put(0, np.nan), "not finite"),
        ("topk", "w:value", lambda a: np.resize(a, 10**6), "must be float32"),
    ],
)
def test_garbage_is_refused_by_the_name_of_its_tensor(
    encoding: str, name: str, change: Any, words: str
) -> None:
    with pytest.raises(UpdateFault, match=words) as refused:
        decoded(changed(encoding, name, change), encoding)
    assert name.split(":")[0] in str(refused.value)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_missing_and_unknown_tensors_are_refused(encoding: str) -> None:
    sent = updates.encode(update(), encoding, ratio=0.25)
    with pytest.raises(UpdateFault, match="unknown"):
        decoded({**sent, "x": sent[next(iter(sent))]}, encoding)
    del sent[next(iter(sent))]
    with pytest.raises(UpdateFault, match="lacks"):
        decoded(sent, encoding)
