"""Partitions of the data, and the arithmetic on updates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InvalidRequest
from orchestrator.finetune.data import Dealing, content_classes, split


def cut(tokens, nodes=("h1", "h2", "h3"), seed=1, **dealing):
    return split(tokens, nodes=nodes, sequence=8, held_out_ratio=0.2, seed=seed, dealing=Dealing(**dealing))


def two_languages(blocks=60):
    """Make a text whose blocks are of one of two kinds, in turn; every token of it is told apart."""
    rng = np.random.default_rng(0)
    return np.concatenate(
        [rng.integers(0, 20, 33) + 30 * (i % 2) + 64 * i for i in range(blocks)], dtype=np.int32
    )


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


def test_capacity_deals_by_compute_and_an_unknown_one_counts_as_average():
    tokens = np.arange(33 * 125, dtype=np.int32)
    made = cut(tokens, kind="capacity", capacities={"h1": 3e9, "h2": 1e9, "h3": None})
    blocks = {node: len(part) / 33 for node, part in made.partitions.items()}
    assert sum(blocks.values()) == 100
    assert blocks == {"h1": 50, "h2": 17, "h3": 33}


def test_blocks_of_one_kind_are_of_one_class():
    tokens = two_languages()
    blocks = [tokens[i * 33 : (i + 1) * 33] for i in range(60)]
    classes = content_classes(blocks, seed=1)
    assert not set(classes[0::2]) & set(classes[1::2])


def test_dirichlet_makes_nodes_data_differ_the_more_the_smaller_alpha_is():
    def spread(alpha):
        made = cut(two_languages(600), nodes=[f"h{i}" for i in range(6)], kind="dirichlet", alpha=alpha)
        shares = [np.mean(part % 64 < 30) for part in made.partitions.values()]
        return np.std(shares)

    assert spread(0.1) > 2 * spread(10.0)


@given(st.integers(0, 1000), st.sampled_from(["equal", "capacity", "dirichlet"]), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_however_it_is_dealt_nobody_goes_without_and_nothing_is_dealt_twice(seed, kind, nodes):
    tokens = np.arange(33 * 40, dtype=np.int32)
    names = [f"h{i}" for i in range(nodes)]
    made = cut(tokens, names, seed, kind=kind, alpha=0.1, capacities={"h0": 1e12, "h1": 1.0})
    dealt = [token for part in made.partitions.values() for token in part.tolist()]
    assert all(len(part) >= 33 for part in made.partitions.values())
    assert len(set(dealt)) == len(dealt)
    assert not set(dealt) & set(made.held_out.tolist())
    np.testing.assert_array_equal(made.held_out, cut(tokens, ["h0"], seed).held_out)
