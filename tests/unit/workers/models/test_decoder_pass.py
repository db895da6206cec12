"""A decoder's one call over all layers and sequences: what goes in by its address is what it must be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from model_worlds import config_with, random_parameters, tiny_model

from workers.models import addressed, gpt2_decoder, kernels, llama_decoder
from workers.models.chain import Chain
from workers.models.config import parse_config
from workers.models.decoder import Decoder
from workers.models.decoders import decoder_of
from workers.models.kv_cache import KvCache
from workers.models.model_config import parameter_shapes
from workers.models.precision import COMPUTE, dtype_of
from workers.models.split import build

Rows = np.ndarray[Any, Any]
FAMILIES: list[dict[str, Any]] = [
    {"num_key_value_heads": 4},
    {"attention_bias": True, "tie_word_embeddings": False},
    {"model_type": "mistral", "sliding_window": 6},
    {"model_type": "qwen2"},
    {"model_type": "qwen3", "head_dim": 16},
    {"model_type": "gpt2"},
]
NAMES = [str(changes.get("model_type", "llama")) for changes in FAMILIES]
of_all_families = pytest.mark.parametrize("changes", FAMILIES, ids=NAMES)
LIMIT = 200


def part_of(changes: dict[str, Any], compute: str = "fp32", first_layer: int = 0, **more: Any) -> Chain:
    """Return some layers of a random model whose matrices are held in a precision."""
    config = parse_config(config_with(**changes))
    whole = random_parameters(config)
    names = parameter_shapes(config, first_layer=first_layer, **more)
    held = {name: whole[name].to(dtype_of(compute) if whole[name].dim() == 2 else None) for name in names}
    return build(config, held, first_layer=first_layer, **more)


def compiled(model: Chain) -> Decoder:
    decoder = decoder_of(model)
    assert decoder is not None
    return decoder


def filled_caches(model: Chain, lengths: list[int]) -> list[KvCache]:
    """Return caches of sequences of these lengths, random rows that have gone through the layers by torch."""
    layers, found = model.layer_range, []
    for number, length in enumerate(lengths):
        cache = KvCache(model.config, first_layer=layers.start, end_layer=layers.stop, limit_tokens=LIMIT)
        if length:
            with torch.inference_mode():
                model.run_layers(torch.from_numpy(rows_of(model, length, seed=number))[None], cache=cache)
        found.append(cache)
    return found


def rows_of(model: Chain, count: int, *, seed: int) -> Rows:
    shape = count, model.config.hidden_size
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def step(decoder: Decoder, rows: Rows, caches: list[KvCache]) -> Rows:
    """Return what rows come to, with room made for them."""
    out, positions = rows.copy(), [cache.tokens for cache in caches]
    for cache in caches:
        cache.make_room(1)
    decoder.run(out, positions, caches)
    return out


def by_torch(model: Chain, rows: Rows, caches: list[KvCache]) -> Rows:
    with torch.inference_mode():
        given = torch.from_numpy(rows.copy())
        return np.stack(
            [
                model.run_layers(row[None, None], position=cache.tokens, cache=cache)[0, 0].numpy()
                for row, cache in zip(given, caches, strict=True)
            ]
        )


@of_all_families
@pytest.mark.parametrize("compute", COMPUTE)
def test_sequences_of_all_lengths_go_on_together_as_in_torch_while_their_caches_grow(changes, compute):
    model = part_of(changes, compute)
    decoder = compiled(model)
    lengths = [0, 1, 5, 60, 63, 64, 120, 127]
    ours, theirs = filled_caches(model, lengths), filled_caches(model, lengths)
    for number in range(12):
        rows = rows_of(model, len(lengths), seed=100 + number)
        wanted = by_torch(model, rows, theirs)
        np.testing.assert_allclose(step(decoder, rows, ours), wanted, atol=2e-3, rtol=2e-3)
    assert [cache.tokens for cache in ours] == [length + 12 for length in lengths]


@of_all_families
@pytest.mark.parametrize("compute", COMPUTE)
def test_a_sequences_row_is_the_same_to_the_last_bit_whatever_goes_with_it(changes, compute):
    model = part_of(changes, compute)
    decoder = compiled(model)
    for count in (16, 2, 3, 8, 5):
        lengths = [7 * number % 67 for number in range(count)]
        rows = rows_of(model, count, seed=count)
        together = step(decoder, rows, filled_caches(model, lengths))
        best = decoder.best(together)
        for number, cache in enumerate(filled_caches(model, lengths)):
            alone = step(decoder, rows[number : number + 1], [cache])
            assert np.array_equal(alone[0], together[number])
            assert decoder.best(alone) == [best[number]]


@of_all_families
def test_layers_from_the_middle_of_a_model_go_by_their_own_caches(changes):
    model = part_of(changes, first_layer=2, end_layer=5, head=False)
    ours, theirs = filled_caches(model, [3, 9]), filled_caches(model, [3, 9])
    rows = rows_of(model, 2, seed=1)
    wanted = by_torch(model, rows, theirs)
    np.testing.assert_allclose(step(compiled(model), rows, ours), wanted, atol=2e-3, rtol=2e-3)


def test_what_a_cache_had_before_it_grew_is_not_written_to_any_more():
    model = tiny_model()
    decoder, (cache,) = compiled(model), filled_caches(model, [63])
    step(decoder, rows_of(model, 1, seed=1), [cache])
    before = cache.held
    kept = before.rows.copy()
    step(decoder, rows_of(model, 1, seed=2), [cache])
    assert (before.room, cache.held.room) == (64, 128)
    assert np.array_equal(before.rows, kept)
    assert np.array_equal(cache.held.rows[:, :, :, :64], kept)
    assert cache.held.rows[:, :, :, 64].any()


def test_a_pass_writes_its_own_row_of_its_own_cache_and_nothing_else():
    model = tiny_model()
    decoder, caches = compiled(model), filled_caches(model, [5, 2])
    for cache in caches:
        cache.make_room(1)
        cache.held.rows[:, :, :, cache.tokens :] = 7.0
    before = [cache.held.rows.copy() for cache in caches]
    decoder.run(rows_of(model, 1, seed=1), [5], caches[:1])
    assert np.array_equal(caches[1].held.rows, before[1])
    changed = caches[0].held.rows != before[0]
    assert changed[:, :, :, 5].all()
    assert not np.delete(changed, 5, axis=3).any()


def without_room(model: Chain) -> KvCache:
    (cache,) = filled_caches(model, [64])
    return cache


def freed(model: Chain) -> KvCache:
    (cache,) = filled_caches(model, [3])
    cache.free()
    return cache


def of_fewer_layers(model: Chain) -> KvCache:
    cache = KvCache(model.config, first_layer=0, end_layer=2, limit_tokens=LIMIT)
    cache.make_room(LIMIT)
    return cache


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("made", [without_room, freed, of_fewer_layers])
def test_a_cache_that_a_row_does_not_fit_is_refused_before_anything_is_written(made, family):
    model = tiny_model(model_type=family)
    decoder, (sound,) = compiled(model), filled_caches(model, [4])
    sound.make_room(1)
    before, rows = sound.held.rows.tobytes(), rows_of(model, 2, seed=1)
    given = rows.copy()
    with pytest.raises(ValueError, match="does not fit a cache of room"):
        decoder.run(rows, [4, 64], [sound, made(model)])
    assert np.array_equal(rows, given)
    assert sound.held.rows.tobytes() == before


@pytest.mark.parametrize("position", [-1, 64, 1 << 40])
def test_a_position_outside_of_a_cache_is_refused(position):
    model = tiny_model()
    (cache,) = filled_caches(model, [4])
    cache.make_room(1)
    with pytest.raises(ValueError, match=f"at position {position} does not fit"):
        compiled(model).run(rows_of(model, 1, seed=1), [position], [cache])


def test_rows_of_another_size_or_number_are_refused():
    model = tiny_model()
    decoder, caches = compiled(model), filled_caches(model, [4])
    caches[0].make_room(1)
    hidden = model.config.hidden_size
    for shape in ((1, hidden - 1), (2, hidden), (hidden,)):
        with pytest.raises(ValueError, match="rows have the shape"):
            decoder.run(np.zeros(shape, dtype=np.float32), [4], caches)
    with pytest.raises(ValueError, match="rows have the shape"):
        decoder.best(np.zeros((1, hidden + 1), dtype=np.float32))


@of_all_families
def test_the_best_are_those_of_the_logits(changes):
    decoder = compiled(model := part_of(changes))
    for count in (3, 1, 9, 2):
        rows = rows_of(model, count, seed=count)
        logits = decoder.logits(rows)
        assert decoder.best(rows) == [kernels.best(one) for one in logits]
        with torch.inference_mode():
            wanted = model.logits(torch.from_numpy(rows)).numpy()
        np.testing.assert_allclose(logits, wanted, atol=1e-3, rtol=1e-3)


def test_a_row_that_is_not_finite_has_no_margin_and_the_others_have():
    decoder = compiled(model := tiny_model())
    rows = rows_of(model, 3, seed=1)
    rows[1, 0] = math.nan
    assert [math.isfinite(margin) for _, margin in decoder.best(rows)] == [True, False, True]


def test_logits_are_the_callers_own():
    decoder = compiled(model := tiny_model())
    first = decoder.logits(rows_of(model, 2, seed=1))
    kept = first.copy()
    decoder.logits(rows_of(model, 2, seed=2))
    decoder.best(rows_of(model, 2, seed=3))
    assert np.array_equal(first, kept)


@of_all_families
@pytest.mark.parametrize("compute", COMPUTE)
def test_embedded_rows_are_the_models_and_fresh(changes, compute):
    decoder = compiled(model := part_of(changes, compute))
    tokens, positions = [5, 0, 257, 5], [0, 3, 4, 1]
    with torch.inference_mode():
        wanted = model.embed(torch.tensor(tokens), torch.tensor(positions)).numpy()
    rows = decoder.embed(tokens, positions)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, wanted)
    rows[:] = 0.0
    assert np.array_equal(decoder.embed(tokens, positions), wanted)
    with pytest.raises(IndexError):
        decoder.embed([258], [0])


@of_all_families
@pytest.mark.parametrize("compute", COMPUTE)
def test_nothing_is_compiled_that_was_not_before_the_first_token(changes, compute):
    model = part_of(changes, compute)
    calls = gpt2_decoder if changes.get("model_type") == "gpt2" else llama_decoder
    decoder = compiled(model)
    own = [(calls._run_layers, 2), (calls._score, -5)]
    before = [[str(found) for found in call.signatures] for call, _ in own]
    rows = step(decoder, rows_of(model, 3, seed=1), filled_caches(model, [1, 2, 3]))
    decoder.best(rows)
    decoder.logits(rows)
    assert [[str(found) for found in call.signatures] for call, _ in own] == before
    for call, place in own:
        held = [str(found[place]) for found in call.signatures]
        assert len(set(held)) == len(held)


def test_parameters_that_are_not_what_they_are_taken_for_are_refused():
    shapes = {"norm": (2,), "table": (3, 2), "bias": (3,)}
    kind = np.dtype(np.float32)
    sound = {"norm": np.ones(2, kind), "table": np.ones((3, 2), kind), "bias": None}
    found = addressed.Parameters(shapes, [sound], held=kind, optional=["bias"])
    assert found.records["table"].tolist() == [sound["table"].ctypes.data]
    assert found.records["bias"].tolist() == [0]
    for name, wrong in {
        "norm": np.ones(3, kind),
        "table": np.ones((3, 2), np.uint16),
        "bias": np.ones(3, np.float64),
    }.items():
        with pytest.raises(ValueError, match=f"parameter {name} is"):
            addressed.Parameters(shapes, [{**sound, name: wrong}], held=kind, optional=["bias"])
    with pytest.raises(ValueError, match="parameter norm is missing"):
        addressed.Parameters(shapes, [{**sound, "norm": None}], held=kind, optional=["bias"])
    turned = np.ones((2, 3), kind).T
    with pytest.raises(ValueError, match="in order"):
        addressed.Parameters(shapes, [{**sound, "table": turned}], held=kind, optional=["bias"])


def test_parameters_live_as_long_as_their_addresses():
    model = tiny_model()
    decoder, rows, cache = compiled(model), rows_of(model, 1, seed=1), filled_caches(model, [4])
    wanted = step(decoder, rows, cache)
    again = filled_caches(model, [4])
    del model
    filler = [np.full(1 << 14, 7.0, dtype=np.float32) for _ in range(64)]
    assert np.array_equal(step(decoder, rows, again), wanted)
    assert len(filler) == 64
