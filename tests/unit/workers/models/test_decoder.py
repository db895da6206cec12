"""Decoding by compiled kernels: the same as the model in torch, alone and several sequences together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_worlds import tiny_model
from numba import njit

from workers.models import kernels, vectors
from workers.models.chain import Chain
from workers.models.decoder import Decoder
from workers.models.decoder import matrix as kernel_matrix
from workers.models.decoders import decoder_of
from workers.models.kv_cache import KvCache
from workers.models.precision import COMPUTE, dtype_of

ROOM = 64
SHAPES: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4},
    {"head_dim": 16},
    {"tie_word_embeddings": False},
    {"attention_bias": True},
    {"model_type": "mistral", "sliding_window": 6},
    {"model_type": "qwen2"},
    {"model_type": "qwen3", "head_dim": 16},
    {"model_type": "gpt2"},
    {"model_type": "gpt2", "tie_word_embeddings": False, "n_inner": 130},
]
PROMPTS = ([5], [1, 5, 9], [200, 3, 4, 1, 7, 7, 0], [9] * 20, [250, 2])


def array(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def compiled(model: Chain) -> Decoder:
    decoder = decoder_of(model)
    assert decoder is not None
    return decoder


def filled_cache(model: Chain, prompt: list[int]) -> KvCache:
    layers = model.layer_range
    cache = KvCache(model.config, first_layer=layers.start, end_layer=layers.stop, limit_tokens=ROOM)
    if prompt:
        with torch.inference_mode():
            model.run_layers(model.embed(torch.tensor([prompt])), cache=cache)
    return cache


def by_torch(model: Chain, prompt: list[int], row: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return what the model makes of a row after a prompt, and its logits."""
    cache = filled_cache(model, prompt)
    with torch.inference_mode():
        out = model.run_layers(torch.from_numpy(row.copy())[None, None], position=len(prompt), cache=cache)
        return out[0, 0].numpy(), model.logits(out)[0, 0].numpy()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_a_product_of_any_shape_is_numpys(count: int, outputs: int, inputs: int) -> None:
    matrix, rows, out = array(outputs, inputs), array(count, inputs, seed=1), array(count, outputs)
    kernels.multiply(matrix, rows, out)
    np.testing.assert_allclose(out, rows @ matrix.T, atol=1e-4)
    transposed, bias = np.ascontiguousarray(matrix.T), array(outputs, seed=2)
    kernels.multiply_stored_transposed(transposed, rows, bias, out)
    np.testing.assert_allclose(out, rows @ matrix.T + bias, atol=1e-4)


@pytest.mark.parametrize("held", COMPUTE)
@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 16])
def test_a_sequences_product_is_the_same_to_the_last_bit_whatever_is_computed_with_it(held, count):
    matrix = kernel_matrix(torch.from_numpy(array(103, 77)).to(dtype_of(held)))
    rows, bias = array(count, 77), array(103)
    together, alone = array(count, 103), array(count, 103)
    kernels.multiply(matrix, rows, together)
    for m in range(count):
        kernels.multiply(matrix, rows[m : m + 1], alone[m : m + 1])
    assert np.array_equal(together, alone)
    turned = np.ascontiguousarray(matrix.T)
    kernels.multiply_stored_transposed(turned, rows, bias, together)
    for m in range(count):
        kernels.multiply_stored_transposed(turned, rows[m : m + 1], bias, alone[m : m + 1])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("prompt", [[], *PROMPTS])
@pytest.mark.parametrize("changes", SHAPES)
def test_a_row_goes_through_as_in_torch(changes: dict[str, Any], prompt: list[int]) -> None:
    model = tiny_model(**changes)
    row = array(model.config.hidden_size)
    wanted, logits = by_torch(model, prompt, row)
    cache, decoder, rows = filled_cache(model, prompt), compiled(model), row[None].copy()
    cache.make_room(1)
    decoder.run(rows, [len(prompt)], [cache])
    np.testing.assert_allclose(rows[0], wanted, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(decoder.logits(rows)[0], logits, atol=1e-3, rtol=1e-3)
    assert cache.tokens == len(prompt) + 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_several_sequences_together_are_each_as_alone(family: str) -> None:
    model = tiny_model(model_type=family)
    decoder = compiled(model)
    caches = [filled_cache(model, list(prompt)) for prompt in PROMPTS]
    rows = array(len(PROMPTS), model.config.hidden_size)
    wanted = [by_torch(model, list(prompt), row)[0] for prompt, row in zip(PROMPTS, rows, strict=True)]
    for cache in caches:
        cache.make_room(1)
    decoder.run(rows, [len(prompt) for prompt in PROMPTS], caches)
    np.testing.assert_allclose(rows, wanted, atol=1e-3, rtol=1e-3)


def test_what_the_kernels_cached_torch_goes_on_from() -> None:
    model = tiny_model()
    row = array(model.config.hidden_size)
    ours, theirs = filled_cache(model, [1, 2]), filled_cache(model, [1, 2])
    ours.make_room(1)
    compiled(model).run(row[None].copy(), [2], [ours])
    with torch.inference_mode():
        model.run_layers(torch.from_numpy(row)[None, None], position=2, cache=theirs)
        following = model.embed(torch.tensor([[7, 8]]))
        both = [model.run_layers(following, position=3, cache=cache) for cache in (ours, theirs)]
    torch.testing.assert_close(both[0], both[1], atol=1e-3, rtol=1e-3)


def test_the_best_is_told_with_its_margin() -> None:
    assert kernels.best(np.array([1.0, 4.0, 3.5, -2.0], dtype=np.float32)) == (1, 0.5)
    assert kernels.best(np.array([4.0, 4.0], dtype=np.float32)) == (0, 0.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_logits_that_are_not_finite_have_no_margin(broken: float, place: int) -> None:
    logits = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    logits[place] = broken
    assert not math.isfinite(kernels.best(logits)[1])


def test_the_kernels_exponential_is_that_of_numpy() -> None:
    given = np.concatenate([np.linspace(-87, 88, 10001), [0.0, 1e-8, -1e-8]]).astype(np.float32)
    found = exponentials(given)
    np.testing.assert_allclose(found, np.exp(given.astype(np.float64)), rtol=2e-7)
    assert exponentials(np.float32([-1000.0, -np.inf])).max() < 2e-38
    assert np.isfinite(exponentials(np.float32([1000.0, np.inf]))).all()
    assert np.isnan(exponentials(np.float32([np.nan])))[0]


@njit
def exponentials(given: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = np.empty_like(given)
    for place in range(given.shape[0]):
        found[place] = vectors.exponential(given[place])
    return found
