"""The job at small scale, for real training: the built-in model and text found on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from benchmarks.stragglers.training import RealTraining
from orchestrator.adapters.models import FolderModels
from orchestrator.config import cache_directory
from orchestrator.finetune.data import Dealing, split
from scenarios.schema import Training

DATA_BYTES = 450_000
HELD_OUT_RATIO = 0.1
MODEL_SEED = 7
TRAINING = Training(schedule="linear", outer_optimiser="nesterov", outer_momentum=0.5)
"""The same for all policies: what docs/fine_tuning.md found best for all nodes and for few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallJob:
    """Nodes with their data, and what trains on it."""

    nodes: tuple[str, ...]
    partitions: dict[str, NDArray[Any]]
    training: RealTraining


def cached_models() -> FolderModels:
    """Return the models of this machine's cache, among them the built-in one."""
    cache = cache_directory()
    return FolderModels(cache_dir=cache, tuned_dir=cache / "tuned", seed=MODEL_SEED)


def small_job(
    nodes: int, *, seed: int, epochs: int, dirichlet: float | None = None, training: Training = TRAINING
) -> SmallJob:
    """Deal the text out to h1..hN, equally, or by Dirichlet(`dirichlet`), as live jobs do."""
    models = cached_models()
    model = models.resolve("embedded", progress=lambda _share, _text: None)
    tokens = models.tokens(model, data="found", max_bytes=DATA_BYTES, seed=seed)
    names = tuple(f"h{number}" for number in range(1, nodes + 1))
    dealt = split(
        tokens,
        nodes=names,
        sequence=training.sequence_length,
        held_out_ratio=HELD_OUT_RATIO,
        seed=seed,
        dealing=None if dirichlet is None else Dealing(kind="dirichlet", alpha=dirichlet),
    )
    return SmallJob(
        nodes=names,
        partitions=dealt.partitions,
        training=RealTraining(
            models,
            model,
            partitions=dealt.partitions,
            held_out=dealt.held_out,
            training=training,
            epochs=epochs,
            seed=seed,
        ),
    )
