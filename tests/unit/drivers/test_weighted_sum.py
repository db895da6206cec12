"""The sum of updates: exact, without trace of the order, and nothing in it that has a fault."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.finetune.parameters import (
    LARGEST,
    MOST_UNITS,
    WeightedSum,
    spec_fault,
    value_fault,
)
from workers.wire.frames import TensorSpec

UNIT = 32.0
VALUES = st.floats(-LARGEST, LARGEST, width=32)
WEIGHTS = st.one_of(st.just(UNIT), st.integers(1, 128).map(float), st.floats(1.0, MOST_UNITS * UNIT))
UPDATES = st.lists(st.tuples(st.tuples(VALUES, VALUES), WEIGHTS), min_size=1, max_size=14)


def array(values) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def mean(updates, base=(0.0, 0.0), learning_rate=1.0) -> np.ndarray:
    parameters = {"w": array(base)}
    total = WeightedSum(parameters, unit=UNIT)
    for values, weight in updates:
        total.add([("w", array(values))], weight)
    return total.applied_to(parameters, learning_rate=learning_rate)["w"]


@given(UPDATES, st.randoms(use_true_random=False))
def test_the_order_of_arrival_shows_in_no_bit(updates, random):
    shuffled = list(updates)
    random.shuffle(shuffled)
    assert mean(updates).tobytes() == mean(shuffled).tobytes()


@given(UPDATES)
def test_the_mean_is_that_of_exact_arithmetic_to_the_resolution_said(updates):
    total = sum(Fraction(weight) for _, weight in updates)
    # Each product is rounded in double, then to 2^-41 of the unit; the result to fp32.
    bound = len(updates) * UNIT * 2.0**-41 / float(total)
    for place, got in enumerate(mean(updates)):
        exact = sum(Fraction(weight) * Fraction(values[place]) for values, weight in updates) / total
        assert abs(float(got) - float(exact)) <= bound + abs(float(exact)) * 2.0**-23 + 2.0**-149


def test_what_cancels_leaves_nothing():
    updates = [((250.0, 1e-7), UNIT), ((-250.0, 0.0), UNIT)]
    assert mean(updates).tolist() == [0.0, pytest.approx(5e-8, rel=1e-4)]


def test_the_order_would_show_in_plain_single_precision():
    values = [256.0, 1e-5, -256.0]
    plain = {math.fsum([np.float32(np.float32(a + b) + c)]) for a, b, c in itertools.permutations(values)}
    assert len(plain) > 1
    sums = {mean([((v, v), UNIT) for v in order]).tobytes() for order in itertools.permutations(values)}
    assert len(sums) == 1


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 60_000), min_size=1, max_size=4))
def test_tensors_of_any_size_are_added_where_they_belong(seed, sizes):
    draw = np.random.default_rng(seed)
    base = {str(number): draw.normal(0, 1, size).astype(np.float32) for number, size in enumerate(sizes)}
    updates = [
        {name: draw.normal(0, 1e-3, values.shape).astype(np.float32) for name, values in base.items()}
        for _ in range(3)
    ]
    total = WeightedSum(base, unit=8.0)
    for update, weight in zip(updates, (8.0, 8.0, 20.0), strict=True):
        total.add(reversed(update.items()), weight)
    got = total.applied_to(base, learning_rate=0.5)
    assert list(got) == list(base)
    for name, values in base.items():
        weighted = sum(
            weight * update[name].astype(np.float64)
            for update, weight in zip(updates, (8.0, 8.0, 20.0), strict=True)
        )
        wanted = (values + 0.5 * weighted / 36).astype(np.float32)
        np.testing.assert_allclose(got[name], wanted, rtol=2e-7, atol=1e-12)
        assert got[name].shape == values.shape


def test_a_tensor_in_pieces_adds_up_as_a_whole_one():
    draw = np.random.default_rng(3)
    base = {name: np.zeros(size, np.float32) for name, size in (("a", 50_000), ("b", 70_001))}
    updates = [{name: draw.normal(0, 1, len(v)).astype(np.float32) for name, v in base.items()} for _ in "12"]
    whole, pieced = WeightedSum(base, unit=UNIT), WeightedSum(base, unit=UNIT)
    for update in updates:
        whole.add(update.items(), 20.0)
        pieces = ((n, update[n][k : k + 33_000]) for n in ("b", "a") for k in range(0, len(base[n]), 33_000))
        pieced.add(pieces, 20.0)
    expected, got = (total.applied_to(base, learning_rate=1.0) for total in (whole, pieced))
    assert all(got[name].tobytes() == expected[name].tobytes() for name in base)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, MOST_UNITS * UNIT * 1.01])
def test_a_weight_out_of_range_is_refused_and_adds_nothing(weight):
    parameters = {"w": array([1.0])}
    total = WeightedSum(parameters, unit=UNIT)
    total.add([("w", array([2.0]))], UNIT)
    with pytest.raises(ValueError, match="weight"):
        total.add([("w", array([9.0]))], weight)
    assert total.applied_to(parameters, learning_rate=1.0)["w"].tolist() == [3.0]


def test_values_at_the_limits_add_up_exactly():
    updates = [((LARGEST, -LARGEST), MOST_UNITS * UNIT)] * 4000
    assert mean(updates).tolist() == [LARGEST, -LARGEST]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, math.nan], "not finite"),
        ([math.inf, 0.0], "not finite"),
        ([0.0, -math.inf], "not finite"),
        ([0.0, -300.0], "holds -300"),
    ],
)
def test_values_that_no_training_gives_are_a_fault(values, said):
    assert said in value_fault("w", array(values))


def test_an_empty_tensor_and_the_limits_are_no_fault():
    assert value_fault("w", array([])) is None
    assert value_fault("w", array([LARGEST, -LARGEST])) is None


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([("w", np.float32, (2,))], "lacks ['v']"),
        ([("w", np.float32, (2,)), ("v", np.float32, (1,)), ("x", np.float32, (1,))], "unknown ['x']"),
        ([("w", np.float32, (1, 2)), ("v", np.float32, (1,))], "w is float32 [1, 2]"),
        ([("w", np.float16, (2,)), ("v", np.float32, (1,))], "w is float16"),
    ],
)
def test_an_update_of_another_form_is_a_fault(specs, said):
    announced = [TensorSpec(name=name, dtype=np.dtype(kind), shape=shape) for name, kind, shape in specs]
    assert said in spec_fault(announced, {"w": array([0, 0]), "v": array([0])})
