"""Real training at small scale as a simulation's loss model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.stragglers import emulated
from benchmarks.stragglers.training import RealTraining
from orchestrator.adapters.models import FolderModels
from orchestrator.finetune.messages import Aggregate, Contribution
from scenarios.schema import Training


@pytest.fixture
def training(tmp_path: Path) -> RealTraining:
    models = FolderModels(cache_dir=tmp_path, tuned_dir=tmp_path, seed=1)
    model = models.resolve(str(emulated.tiny_model(tmp_path, seed=1)), progress=lambda _share, _text: None)
    draw = np.random.default_rng(1)
    parts = {f"h{i}": draw.integers(97, 103, 400).astype(np.uint8) for i in (1, 2)}
    return RealTraining(
        models,
        model,
        partitions=parts,
        held_out=draw.integers(97, 103, 200).astype(np.int32),
        training=Training(local_steps=4, sequence_length=16, learning_rate=1e-2),
        epochs=2,
        seed=1,
    )


def aggregate(epoch: int, *nodes: str) -> Aggregate:
    return Aggregate(
        epoch=epoch,
        base_version=epoch,
        new_version=epoch + 1,
        outer_learning_rate=1.0,
        contributions=tuple(Contribution(node=node, weight=16.0) for node in nodes),
    )


def test_training_lowers_the_held_out_loss(training: RealTraining) -> None:
    for epoch in range(2):
        for node in ("h1", "h2"):
            training.train(node, epoch, epoch)
        training.aggregate(aggregate(epoch, "h1", "h2"))
    assert training.loss(2) < training.loss(1) < training.loss(0)


def test_a_late_node_trains_from_its_older_version_as_if_it_were_on_time(training: RealTraining) -> None:
    on_time = training.train("h2", 0, 0)
    training.train("h1", 0, 0)
    training.aggregate(aggregate(0, "h1"))
    training.train("h1", 1, 1)
    assert training.train("h2", 0, 0) == on_time
