"""Partitions of the data, and the arithmetic on updates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidRequest
from orchestrator.finetune.data import split
from orchestrator.finetune.parameters import WeightedSum


def cut(tokens, nodes=("h1", "h2", "h3"), seed=1):
    return split(tokens, nodes=nodes, sequence=8, held_out_ratio=0.2, seed=seed)


def test_partitions_are_equal_disjoint_and_apart_from_the_held_out_part():
    tokens = np.arange(33 * 20, dtype=np.int32)
    made = cut(tokens)
    parts = [set(part.tolist()) for part in made.partitions.values()]
    assert len({len(part) for part in parts}) == 1
    assert not parts[0] & parts[1]
    assert not set(made.held_out.tolist()) & set.union(*parts)
    assert len(made.held_out) == 33 * 4


def test_the_same_seed_cuts_the_same_and_another_does_not():
    tokens = np.arange(33 * 20, dtype=np.int32)
    first, again, other = cut(tokens), cut(tokens), cut(tokens, seed=2)
    np.testing.assert_array_equal(first.partitions["h2"], again.partitions["h2"])
    assert not np.array_equal(first.partitions["h2"], other.partitions["h2"])


def test_small_vocabularies_cross_the_network_in_one_byte_per_token():
    small = cut(np.arange(33 * 20, dtype=np.int32) % 256).partitions["h1"]
    large = cut(np.arange(33 * 20, dtype=np.int32)).partitions["h1"]
    assert (small.dtype, large.dtype) == (np.uint8, np.int32)


def test_too_few_tokens_are_refused_with_what_would_do():
    with pytest.raises(InvalidRequest, match="at least 4"):
        cut(np.arange(33 * 3, dtype=np.int32))


@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 1000)), min_size=1, max_size=12))
def test_the_sum_is_the_weighted_mean_whatever_the_order(updates):
    forth, back = WeightedSum(), WeightedSum()
    for value, weight in updates:
        forth.add({"w": np.array([value], dtype=np.float32)}, weight)
    for value, weight in reversed(updates):
        back.add({"w": np.array([value], dtype=np.float32)}, weight)
    base = {"w": np.array([1.0], dtype=np.float32)}
    got = forth.applied_to(base, learning_rate=1.0)["w"]
    expected = 1 + np.average([v for v, _ in updates], weights=[w for _, w in updates])
    np.testing.assert_allclose(got, [expected], atol=1e-5)
    np.testing.assert_allclose(back.applied_to(base, learning_rate=1.0)["w"], got, atol=1e-6)
    assert got.dtype == np.float32
