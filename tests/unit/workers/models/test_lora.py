"""Adapters: they begin by changing nothing, train alone, and merge into the model that was trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_worlds import TINY, as_arrays, profile
from test_trainer import CONFIG, PLAN, START

from workers.device import Pacer
from workers.errors import RequestRefused
from workers.finetune.trainer import Trainer
from workers.models import lora
from workers.models.architecture import architecture
from workers.models.loader import digest
from workers.models.lora import Lora
from workers.models.lora_layers import attach
from workers.models.split import build
from workers.wire.frames import Frame

SETTINGS = Lora(rank=4, alpha=8.0)
BASE = as_arrays(START)
PROJECTIONS = architecture(TINY).projections
TEXT = torch.tensor([list(b"the quick brown fox jumps over the lazy dog. ")])


def adapters(seed: int = 1, *, changed: bool = False) -> dict[str, Any]:
    made = lora.initial(PROJECTIONS, SETTINGS, seed=seed)
    if changed:
        rng = np.random.default_rng(seed)
        made = {name: rng.normal(0, 0.1, array.shape).astype(np.float32) for name, array in made.items()}
    return made


def tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def test_every_projection_of_the_layers_has_a_pair_and_nothing_else_has() -> None:
    names = lora.adapter_shapes(PROJECTIONS, SETTINGS)
    assert len(names) == CONFIG.layers * 7 * 2
    assert names["model.layers.0.mlp.down_proj.lora_A.weight"] == (4, CONFIG.feed_forward_size)
    assert names["model.layers.0.mlp.down_proj.lora_B.weight"] == (CONFIG.hidden_size, 4)


def test_new_adapters_change_nothing_and_are_the_same_for_the_same_seed() -> None:
    merged = lora.merged(BASE, adapters(), SETTINGS, PROJECTIONS)
    assert all(np.array_equal(merged[name], BASE[name]) for name in BASE)
    assert all(np.array_equal(a, b) for a, b in zip(adapters().values(), adapters().values(), strict=True))


def test_the_merged_model_gives_the_logits_of_the_model_with_adapters() -> None:
    changed = adapters(changed=True)
    model = build(CONFIG, START)
    attach(model, tensors(changed), SETTINGS.scale)
    plain = build(CONFIG, tensors(lora.merged(BASE, changed, SETTINGS, PROJECTIONS)))
    with torch.no_grad():
        torch.testing.assert_close(model(TEXT), plain(TEXT), rtol=1e-4, atol=1e-4)
        assert (plain(TEXT) - build(CONFIG, START)(TEXT)).abs().max() > 0.01


def ask(trainer: Trainer, kind: str, arrays: dict[str, Any] | None = None, **fields: Any) -> Any:
    return trainer.handle(Frame(kind, fields={"job": "j", **fields}, tensors=arrays or {}, id=1))


@pytest.fixture
def trainer() -> Trainer:
    made = Trainer(Pacer(profile()))
    plan = {**PLAN, "lora_rank": 4, "lora_alpha": 8.0, "learning_rate": 1e-2}
    everything = {**BASE, **adapters()}
    reply = ask(made, "train.load", everything, version=0, config=TINY, training=plan)
    assert reply.fields["digest"] == digest(tensors(everything))
    text = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 40, dtype=np.uint8)
    ask(made, "train.data", {"tokens": text})
    return made


def test_only_adapters_come_back_and_merged_they_lower_the_loss(trainer: Trainer) -> None:
    update = ask(trainer, "train.run", epoch=0, version=0, seed=1).tensors
    assert set(update) == set(adapters())
    assert sum(a.nbytes for a in update.values()) < sum(a.nbytes for a in BASE.values())
    tuned = lora.merged(
        BASE, {name: value + update[name] for name, value in adapters().items()}, SETTINGS, PROJECTIONS
    )
    with torch.no_grad():
        assert build(CONFIG, tensors(tuned)).loss(TEXT) < build(CONFIG, START).loss(TEXT)
    assert all(torch.equal(value, START[name]) for name, value in trainer._jobs["j"].base.items())


def test_an_update_of_the_parameters_is_of_the_adapters_only(trainer: Trainer) -> None:
    changed = adapters(changed=True)
    assert ask(trainer, "train.update", changed, version=1).fields["digest"] == digest(tensors(changed))
    assert ask(trainer, "train.run", epoch=1, version=1, seed=1).fields["version"] == 1
    with pytest.raises(RequestRefused, match="missing"):
        ask(trainer, "train.update", BASE, version=2)


def test_a_gradient_round_answers_the_adapters_gradients() -> None:
    made = Trainer(Pacer(profile()))
    plan = {**PLAN, "lora_rank": 4, "synchronisation": "gradient"}
    ask(made, "train.load", {**BASE, **adapters()}, version=0, config=TINY, training=plan)
    ask(made, "train.data", {"tokens": np.zeros(100, dtype=np.uint8)})
    update = ask(made, "train.run", epoch=0, version=0, seed=1).tensors
    moved = {name for name, value in update.items() if value.any()}
    assert moved
    assert all(".lora_B." in name for name in moved), "while B is zero, A has no gradient"
