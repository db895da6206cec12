"""What a job takes of a node's memory: at least what its trainer holds, of which kinds there are."""

from __future__ import annotations

import pytest

from orchestrator.finetune.node_memory import JobMemory, job_memory
from orchestrator.ports import NodeRecord
from scenarios.schema import Training
from workers.models.architecture import Architecture
from workers.models.lora import Projection

PARAMETERS = 1_000_000
MODEL = Architecture(
    family="llama",
    document={},
    vocabulary_size=1000,
    layers=1,
    context_tokens=512,
    shapes={"w": (1000, 1000)},
    projections={"layers.0.mlp": Projection(inputs=1000, outputs=500)},
)
LOGITS = 2 * 4 * (4 * 64) * 1000
WHOLE = 4 * PARAMETERS


def needed(**training: object) -> int:
    return job_memory(Training(**training), MODEL).needed_bytes(accelerator=False)


def a_node(free_memory_bytes: int | None, device: str = "cpu") -> NodeRecord:
    return NodeRecord(
        node="h1", trusted=True, enrolled=True, alive=True, reason=None,
        free_memory_bytes=free_memory_bytes, profile={"device": device},
    )  # fmt: skip


def test_adam_takes_five_copies_of_the_parameters_and_sgd_four() -> None:
    assert needed(optimiser="adamw") == 5 * WHOLE + LOGITS
    assert needed(optimiser="sgd") == 4 * WHOLE + LOGITS


def test_a_gradient_needs_no_optimiser_on_the_node() -> None:
    assert needed(optimiser="adamw", synchronisation="gradient") == needed(optimiser="sgd")


def test_adapters_take_little_beside_the_model() -> None:
    adapters = 4 * 8 * (1000 + 500)
    assert needed(lora_rank=8) == WHOLE + 5 * adapters + LOGITS


def test_what_top_k_keeps_counts_where_it_is_more_than_training_takes() -> None:
    assert needed(update_encoding="topk", batch_size=1, sequence_length=8) == 6 * WHOLE


def test_on_an_accelerator_training_takes_nothing_of_the_main_memory() -> None:
    assert job_memory(Training(), MODEL).needed_bytes(accelerator=True) == 2 * WHOLE


@pytest.mark.parametrize(
    ("free", "device", "short"),
    [
        (499, "cpu", True),
        (500, "cpu", False),
        (None, "cpu", False),
        (299, "cuda", True),
        (300, "cuda", False),
    ],
)
def test_a_node_is_short_of_memory_only_if_it_says_that_it_has_less(
    free: int | None, device: str, short: bool
) -> None:
    memory = JobMemory(held_bytes=100, training_bytes=400, sending_bytes=200)
    assert (memory.shortage(a_node(free, device)) is not None) == short


def test_a_shortage_says_what_is_there_and_what_it_takes() -> None:
    memory = JobMemory(held_bytes=2_000_000, training_bytes=3_500_000, sending_bytes=0)
    assert memory.shortages([a_node(1_000_000)]) == {
        "h1": "1.0 MB of its memory are free, the job takes at least 5.5 MB"
    }
