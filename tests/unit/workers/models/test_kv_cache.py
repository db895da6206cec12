"""Caches grow, go back, and stay within their budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_worlds import TINY

from workers.models.config import parse_config
from workers.models.kv_cache import (
    ContextExceeded,
    KvCache,
    MemoryBudget,
    MissingRows,
    OutOfMemory,
    SequenceReserve,
    cache_bytes,
)

CONFIG = parse_config(TINY)


def rows(count: int, value: float) -> torch.Tensor:
    return torch.full((1, CONFIG.kv_heads, count, CONFIG.head_size), value)


def make(limit_tokens: int = 200, budget: MemoryBudget | None = None) -> KvCache:
    return KvCache(CONFIG, first_layer=2, end_layer=4, limit_tokens=limit_tokens, budget=budget)


def fill(cache: KvCache, count: int, value: float) -> tuple[torch.Tensor, torch.Tensor]:
    for layer in (2, 3):
        found = cache.extend(layer, rows(count, value), rows(count, -value))
    return found


def test_rows_stay_when_the_cache_grows() -> None:
    cache = make()
    for value in range(150):
        keys, values = fill(cache, 1, float(value))
    assert keys[0, 0, :, 0].tolist() == [float(value) for value in range(150)]
    assert values[0, 1, :, 3].tolist() == [-float(value) for value in range(150)]
    assert cache.tokens == 150


def test_going_back_forgets_what_follows() -> None:
    cache = make()
    fill(cache, 5, 1.0)
    cache.go_to(2)
    keys, _ = fill(cache, 1, 7.0)
    assert keys[0, 0, :, 0].tolist() == [1.0, 1.0, 7.0]
    with pytest.raises(MissingRows, match="from 4 on arrive, but only 3"):
        cache.go_to(4)


def test_the_context_is_a_limit() -> None:
    cache = make(limit_tokens=70)
    fill(cache, 70, 1.0)
    with pytest.raises(ContextExceeded, match="71 tokens exceed the context of 70"):
        cache.make_room(1)
    assert cache.size_bytes == cache_bytes(CONFIG, layers=2, tokens=70)


def test_memory_comes_from_the_budget_and_goes_back() -> None:
    budget = MemoryBudget(cache_bytes(CONFIG, layers=2, tokens=128))
    cache = make(budget=budget)
    fill(cache, 100, 1.0)
    assert budget.used_bytes == cache.size_bytes
    with pytest.raises(OutOfMemory, match=f"may hold {budget.limit_bytes}"):
        make(budget=budget).make_room(1)
    cache.free()
    assert (budget.used_bytes, cache.tokens) == (0, 0)


def test_a_refused_growth_changes_nothing() -> None:
    budget = MemoryBudget(cache_bytes(CONFIG, layers=2, tokens=64))
    cache = make(budget=budget)
    fill(cache, 64, 3.0)
    with pytest.raises(OutOfMemory):
        cache.make_room(1)
    assert cache.tokens == 64
    assert budget.used_bytes == budget.limit_bytes


def test_what_is_set_aside_is_there_for_caches_only() -> None:
    budget = MemoryBudget(100)
    reserve = SequenceReserve(budget)
    reserve.set_aside(60, "a sequence")
    with pytest.raises(OutOfMemory):
        budget.reserve(41, "another layer")
    reserve.reserve(60, "a cache")
    assert budget.used_bytes == 60
    reserve.reserve(30, "another cache")
    with pytest.raises(OutOfMemory):
        reserve.reserve(11, "a third")
    reserve.release(90)
    assert budget.used_bytes == 60
    reserve.set_aside(0, "nothing")
    assert budget.used_bytes == 0


def test_a_deployment_with_a_limit_leaves_the_rest_to_others() -> None:
    budget = MemoryBudget(100)
    limited, other = SequenceReserve(budget), SequenceReserve(budget)
    limited.set_aside(20, "a sequence", limit_bytes=50)
    limited.reserve(50, "caches")
    with pytest.raises(OutOfMemory, match="kv_cache_bytes 50 are this node's and 50 are in use"):
        limited.reserve(1, "one more")
    other.reserve(50, "caches of another")
    limited.release(50)
    assert (limited.used_bytes, budget.used_bytes) == (0, 70)


def test_a_limit_below_one_sequence_is_refused_and_changes_nothing() -> None:
    budget = MemoryBudget(100)
    reserve = SequenceReserve(budget)
    with pytest.raises(OutOfMemory, match="needs 60 bytes; of the deployment's kv_cache_bytes 59"):
        reserve.set_aside(60, "a sequence", limit_bytes=59)
    assert (budget.used_bytes, reserve.limit_bytes) == (0, None)


@given(st.lists(st.tuples(st.sampled_from(["set", "take", "give"]), st.integers(0, 60)), max_size=40))
def test_the_budget_always_holds_the_larger_of_set_aside_and_used(steps: list[tuple[str, int]]) -> None:
    budget = MemoryBudget(100)
    reserve = SequenceReserve(budget)
    set_aside = used = 0
    for step, size in steps:
        try:
            if step == "set":
                reserve.set_aside(size, "x")
                set_aside = size
            elif step == "take":
                reserve.reserve(size, "x")
                used += size
            elif used >= size:
                reserve.release(size)
                used -= size
        except OutOfMemory:
            pass
        assert budget.used_bytes == max(set_aside, used) <= 100
