"""What a round is said to ask of nodes, held against what nodes count and what crosses the wire."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from orchestrator.finetune.data import Dealing, split
from orchestrator.finetune.job_workload import job_workload
from orchestrator.finetune.request import JobRequest
from orchestrator.ports import Model
from workers.finetune import updates
from workers.models.architecture import architecture
from workers.models.embedded import CONFIG
from workers.models.lora import Lora, adapter_shapes

FOUND = architecture(CONFIG)
MODEL = Model(
    name="tiny",
    folder=Path("/"),
    config=CONFIG,
    tokenizer_json="",
    parameter_bytes=4 * FOUND.parameters,
    digest="",
    layers=FOUND.layers,
    context_tokens=FOUND.context_tokens,
)
TOKENS = 2 * 4 * 16


def workload(trained=FOUND.shapes, **training):
    request = JobRequest(training={"local_steps": 2, "batch_size": 4, "sequence_length": 16, **training})
    dealt = split(
        np.arange(4000, dtype=np.int32) % 250,
        nodes=("h1", "h2"),
        sequence=16,
        held_out_ratio=0.1,
        seed=1,
        dealing=Dealing(kind="equal", alpha=1.0, capacities={}),
    )
    return job_workload(request, MODEL, dealt, trained=trained)


def test_full_training_takes_six_flops_per_parameter_and_token_and_sends_the_model_each_round():
    found = workload()
    assert found.flops == 6 * FOUND.parameters * TOKENS
    assert (found.model_bytes, found.update_bytes, found.base_bytes) == (*[4 * FOUND.parameters] * 2, 0)


@pytest.mark.parametrize("encoding", updates.ENCODINGS)
def test_an_update_is_said_to_take_the_bytes_that_it_takes(encoding):
    rng = np.random.default_rng(1)
    update = {name: rng.normal(size=shape).astype(np.float32) for name, shape in FOUND.shapes.items()}
    sent = updates.encode(update, encoding, ratio=0.05)
    told = workload(update_encoding=encoding, topk_ratio=0.05).update_bytes
    assert told == sum(array.nbytes for array in sent.values())


def test_adapters_cost_no_gradients_of_what_lies_under_them_which_is_sent_once():
    shapes = adapter_shapes(FOUND.projections, Lora(rank=4, alpha=8.0))
    adapters = sum(map(math.prod, shapes.values()))
    found = workload(shapes, lora_rank=4, update_encoding="fp16")
    assert found.flops == (4 * (FOUND.parameters + adapters) + 2 * adapters) * TOKENS
    assert (found.model_bytes, found.update_bytes) == (4 * adapters, 2 * adapters)
    assert found.base_bytes == 4 * FOUND.parameters
    assert found.flops < 0.85 * workload().flops
