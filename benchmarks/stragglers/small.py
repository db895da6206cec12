"""The job at small scale, for real training: the built-in model and text found on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stragglers.training import RealTraining
from orchestrator.adapters.models import FolderModels
from orchestrator.finetune.data import narrow, split
from scenarios.schema import Training

DATA_BYTES = 450_000
HELD_OUT_RATIO = 0.1
TOPICS = 8
"""So many equal stretches of the text count as topics when data is dealt out unequally."""
MODEL_SEED = 7

Partitions = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallJob:
    """Nodes with their data, and what trains on it."""

    nodes: tuple[str, ...]
    partitions: Partitions
    training: RealTraining


def cached_models() -> FolderModels:
    """Return the models of this machine's cache, among them the built-in one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "utopia"
    return FolderModels(cache_dir=cache, tuned_dir=cache / "tuned", seed=MODEL_SEED)


def small_job(nodes: int, *, seed: int, dirichlet: float | None = None) -> SmallJob:
    """Deal the text out to h1..hN, equally, or by topics in shares drawn from Dirichlet(`dirichlet`)."""
    models, training = cached_models(), Training()
    model = models.resolve("embedded", progress=lambda _share, _text: None)
    tokens = models.tokens(model, data="found", max_bytes=DATA_BYTES, seed=seed)
    names = tuple(f"h{number}" for number in range(1, nodes + 1))
    dealt = split(
        tokens,
        nodes=names,
        sequence=training.sequence_length,
        held_out_ratio=HELD_OUT_RATIO,
        seed=seed,
    )
    partitions: Partitions = dict(dealt.partitions)
    held_out = dealt.held_out
    if dirichlet is not None:
        held_out, partitions = by_topic(
            tokens, names, sequence=training.sequence_length, alpha=dirichlet, seed=seed
        )
    return SmallJob(
        nodes=names,
        partitions=partitions,
        training=RealTraining(
            models, model, partitions=partitions, held_out=held_out, training=training, seed=seed
        ),
    )


def by_topic(
    tokens: NDArray[np.int32], nodes: tuple[str, ...], *, sequence: int, alpha: float, seed: int
) -> tuple[NDArray[np.int32], Partitions]:
    """Hold a tenth of every topic out; give each node as many blocks as any other, of topics by its shares.

    A node's shares are drawn from Dirichlet(`alpha`) over the topics, which are equal stretches of the text.
    Blocks of a topic are given to nodes one after another and again from the first when they run out.
    """
    draw = np.random.default_rng([seed, 0xD1])
    size = 4 * sequence + 1
    count = len(tokens) // size // TOPICS * TOPICS
    topics = np.split(tokens[: count * size].reshape(count, size), TOPICS)
    for topic in topics:
        draw.shuffle(topic)
    cut = max(1, round(HELD_OUT_RATIO * len(topics[0])))
    held_out = np.concatenate([topic[:cut] for topic in topics]).ravel()
    kept = [topic[cut:] for topic in topics]
    each = max(sum(len(topic) for topic in kept) // len(nodes), 1)
    given = [0] * TOPICS
    partitions: Partitions = {}
    for node in nodes:
        wanted = draw.multinomial(each, draw.dirichlet([alpha] * TOPICS))
        blocks = []
        for number, topic in enumerate(kept):
            take = (given[number] + np.arange(wanted[number])) % len(topic)
            given[number] += int(wanted[number])
            blocks.append(topic[take])
        partitions[node] = narrow(np.concatenate(blocks).ravel())
    return held_out, partitions
