"""Training a node's share: what comes back, what is refused, how long it takes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from model_worlds import TINY, as_arrays, profile, random_parameters

from workers.device import Pacer, training_s
from workers.errors import RequestRefused
from workers.finetune.trainer import Trainer
from workers.models.config import parse_config
from workers.models.loader import digest
from workers.models.split import build
from workers.wire.frames import Frame
from workers.wire.link import Reply

CONFIG = parse_config(TINY)
PLAN = {
    "local_steps": 3,
    "batch_size": 4,
    "sequence_length": 16,
    "learning_rate": 1e-3,
    "optimiser": "adamw",
    "synchronisation": "local_steps",
    "schedule": "constant",
    "total_steps": 30,
    "warmup_steps": 0,
    "final_learning_rate_ratio": 0.0,
    "update_encoding": "fp32",
    "topk_ratio": 0.1,
    "lora_rank": 0,
    "lora_alpha": 8.0,
}
START = random_parameters(CONFIG)


class Node:
    """A trainer with a job and data, and the orchestrator's side of it."""

    def __init__(self, **profile_changes: Any) -> None:
        self.profile = profile(**profile_changes)
        self.trainer = Trainer(Pacer(self.profile))

    def ask(self, kind: str, tensors: dict[str, Any] | None = None, **fields: Any) -> Reply:
        return self.trainer.handle(Frame(kind, fields={"job": "j", **fields}, tensors=tensors or {}, id=1))

    def load(self, **plan: Any) -> Reply:
        return self.ask("train.load", as_arrays(START), version=3, config=TINY, training={**PLAN, **plan})

    def give(self, tokens: Any = None) -> Reply:
        text = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 40, dtype=np.uint8)
        return self.ask("train.data", {"tokens": text if tokens is None else tokens})

    def run(self, **fields: Any) -> Reply:
        return self.ask("train.run", **{"epoch": 0, "version": 3, "seed": 1, **fields})


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    node.load()
    node.give()
    yield node
    node.trainer.close()


def refusal(call: Any, *arguments: Any, **options: Any) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        call(*arguments, **options)
    return caught.value


def test_loading_answers_version_and_digest() -> None:
    node = Node()
    assert node.load().fields == {"version": 3, "digest": digest(START)}
    assert node.give().fields == {"tokens": 45 * 40}


def test_the_delta_added_to_the_start_lowers_the_loss(node: Node) -> None:
    reply = node.run()
    assert set(reply.tensors) == set(START)
    tuned = {name: value + torch.from_numpy(reply.tensors[name]) for name, value in START.items()}
    text = torch.tensor([list(b"the quick brown fox jumps over the lazy dog. ")])
    with torch.no_grad():
        assert build(CONFIG, tuned).loss(text) < build(CONFIG, START).loss(text)
    fields = reply.fields
    assert (fields["epoch"], fields["version"], fields["samples"], fields["tokens"]) == (0, 3, 12, 192)
    assert fields["loss"] > 0
    assert fields["late_s"] == 0


def test_the_same_seed_gives_the_same_delta_and_the_start_stays(node: Node) -> None:
    first, second, other = node.run(), node.run(), node.run(seed=2)
    later = node.run(epoch=1)
    same = [np.array_equal(first.tensors[name], second.tensors[name]) for name in START]
    assert all(same)
    assert not np.array_equal(first.tensors["model.norm.weight"], other.tensors["model.norm.weight"])
    assert not np.array_equal(first.tensors["model.norm.weight"], later.tensors["model.norm.weight"])


def test_an_update_is_what_the_next_run_starts_from(node: Node) -> None:
    updated = {name: value + 0.01 for name, value in START.items()}
    reply = node.ask("train.update", as_arrays(updated), version=4)
    assert reply.fields == {"version": 4, "digest": digest(updated)}
    assert node.run(version=4).fields["version"] == 4
    assert refusal(node.run, version=3).code == "wrong-version"
    assert refusal(node.ask, "train.update", as_arrays(START), version=3).code == "wrong-version"
    assert node.ask("train.update", as_arrays(START), version=3, anew=True).fields["version"] == 3


def test_parameters_sent_with_a_run_replace_older_ones(node: Node) -> None:
    reply = node.ask("train.run", as_arrays(START), epoch=1, version=5, seed=1)
    assert reply.fields["version"] == 5


def test_sgd_steps_along_the_gradient(node: Node) -> None:
    node.load(optimiser="sgd", local_steps=1, learning_rate=0.1)
    node.give()
    delta = node.run().tensors
    length = sum(float((value.astype(np.float64) ** 2).sum()) for value in delta.values()) ** 0.5
    assert length == pytest.approx(0.1, rel=1e-3)  # the gradient is clipped to norm 1


def gradient_of(node: Node, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Compute the mean gradient over the batches that the node draws for epoch 0 with seed 1."""
    job = node.trainer._jobs["j"]
    assert job.data is not None
    model = build(CONFIG, {name: value.clone() for name, value in parameters.items()})
    generator = torch.Generator().manual_seed(1_000_003)
    for _ in range(job.plan.local_steps):
        batch = job.data.unfold(0, 17, 1)[torch.randint(0, len(job.data) - 16, (4,), generator=generator)]
        (model.loss(batch.long()) / job.plan.local_steps).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_a_gradient_round_answers_minus_the_mean_gradient(node: Node) -> None:
    node.load(synchronisation="gradient")
    node.give()
    update = node.run().tensors
    expected = gradient_of(node, START)
    assert set(update) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(update[name], -value.numpy(), rtol=1e-4, atol=1e-7)


def test_a_falling_schedule_makes_the_last_epochs_steps_smaller(node: Node) -> None:
    def length(epoch: int) -> float:
        delta = node.run(epoch=epoch).tensors
        return float(sum((value.astype(np.float64) ** 2).sum() for value in delta.values()) ** 0.5)

    node.load(schedule="linear", optimiser="sgd", local_steps=1, learning_rate=0.1, total_steps=4)
    node.give()
    assert [length(epoch) for epoch in range(4)] == pytest.approx([0.1, 0.075, 0.05, 0.025], rel=1e-3)


def test_top_k_sends_later_what_it_left_out(node: Node) -> None:
    plan = {"update_encoding": "topk", "topk_ratio": 0.25, "optimiser": "sgd", "local_steps": 1}
    node.load(optimiser="sgd", local_steps=1)
    node.give()
    whole = [node.run(epoch=epoch).tensors for epoch in (0, 1)]
    node.load(**plan)
    node.give()
    name = "model.embed_tokens.weight"
    first, second = node.run(epoch=0).tensors, node.run(epoch=1).tensors
    left = whole[0][name].reshape(-1).copy()
    assert len(first[f"{name}:value"]) == -(-left.size // 4)
    np.testing.assert_array_equal(left[first[f"{name}:index"]], first[f"{name}:value"])
    left[first[f"{name}:index"]] = 0
    owed = left + whole[1][name].reshape(-1)
    np.testing.assert_allclose(owed[second[f"{name}:index"]], second[f"{name}:value"], rtol=1e-6)
    node.load(**plan)  # loaded anew, it owes nothing
    node.give()
    again = node.run(epoch=1).tensors
    np.testing.assert_array_equal(whole[1][name].reshape(-1)[again[f"{name}:index"]], again[f"{name}:value"])


def test_what_a_node_holds_can_be_asked_for_and_is_trained_on(node: Node) -> None:
    text = b"the quick brown fox jumps over the lazy dog. " * 40
    held = node.ask("train.holding").fields
    assert held == {"version": 3, "digest": digest(START), "data_digest": hashlib.sha256(text).hexdigest()}
    assert node.run().fields["version"] == 3


def test_asking_what_is_held_stops_what_still_runs() -> None:
    node = Node(pacing=True, compute_flops=1e3)
    node.load()
    node.give()
    refusals: list[RequestRefused] = []
    thread = threading.Thread(target=lambda: refusals.append(refusal(node.run)))
    thread.start()
    deadline = time.monotonic() + 10
    while not node.trainer._jobs["j"].lock.locked() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert node.ask("train.holding").fields["version"] == 3
    thread.join(20)
    assert not thread.is_alive()
    assert refusals[0].code == "ended"
    assert refusal(node.ask, "train.holding", job="other").code == "no-such-job"


def test_training_takes_as_long_as_the_device_would() -> None:
    node = Node(pacing=True, compute_flops=2e8, layer_overhead_s=0.0)
    node.load()
    node.give()
    fields = node.run().fields
    modelled_s = training_s(node.profile, parameters=CONFIG.parameters, layers=6, tokens=192, steps=3)
    assert modelled_s > 0.2
    assert fields["train_s"] == pytest.approx(max(modelled_s, fields["real_s"]), rel=0.1, abs=0.02)
    assert fields["late_s"] == pytest.approx(max(0.0, fields["real_s"] - modelled_s))


def test_ending_a_job_ends_its_wait() -> None:
    node = Node(pacing=True, compute_flops=1e3)
    node.load()
    node.give()
    refusals: list[RequestRefused] = []
    thread = threading.Thread(target=lambda: refusals.append(refusal(node.run)))
    thread.start()
    node.ask("train.end")
    thread.join(20)
    assert not thread.is_alive()
    assert refusals[0].code in ("ended", "no-such-job")


def test_closing_ends_what_runs() -> None:
    node = Node(pacing=True, compute_flops=1e3)
    node.load()
    node.give()
    thread = threading.Thread(target=lambda: refusal(node.run))
    thread.start()
    node.trainer.close()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused(node: Node, value: float) -> None:
    broken = as_arrays(START)
    broken["model.norm.weight"][3] = value
    error = refusal(node.ask, "train.update", broken, version=4)
    assert (error.code, "model.norm.weight" in error.detail) == ("not-finite", True)
    assert node.run(version=3).fields["version"] == 3


def test_a_result_that_is_not_finite_is_refused(node: Node) -> None:
    huge = as_arrays(START)
    huge["model.layers.3.mlp.down_proj.weight"][:] = 3e38
    node.ask("train.update", huge, version=4)
    assert refusal(node.run, version=4).code == "not-finite"


@pytest.mark.parametrize(
    ("tokens", "code"),
    [
        (np.zeros(16, dtype=np.uint8), "too-little-data"),
        (np.zeros((4, 50), dtype=np.uint8), "bad-tensor"),
        (np.zeros(50, dtype=np.float32), "bad-tensor"),
        (np.full(50, 258, dtype=np.int32), "bad-tensor"),
        (np.full(50, -1, dtype=np.int32), "bad-tensor"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(node: Node, tokens: Any, code: str) -> None:
    assert refusal(node.give, tokens).code == code


@pytest.mark.parametrize(
    "change",
    [
        {"local_steps": 0},
        {"local_steps": 1.5},
        {"batch_size": True},
        {"sequence_length": 4},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"optimiser": "lion"},
        {"schedule": "steep"},
        {"synchronisation": "never"},
        {"update_encoding": "zip"},
        {"topk_ratio": 0},
        {"final_learning_rate_ratio": -1},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_naming_the_field(node: Node, change: dict[str, Any]) -> None:
    error = refusal(node.load, **change)
    assert (error.code, next(iter(change)) in error.detail) == ("bad-field", True)


def test_commands_out_of_order_are_refused() -> None:
    node = Node()
    assert refusal(node.run).code == "no-such-job"
    assert refusal(node.give).code == "no-such-job"
    node.load()
    assert refusal(node.run).code == "no-data"
    assert refusal(node.ask, "train.nap").code == "not-served"


def test_parameters_of_another_model_are_refused(node: Node) -> None:
    assert refusal(
        node.ask, "train.update", {"model.norm.weight": np.zeros(32, np.float32)}, version=4
    ).code == ("bad-model")


def test_jobs_are_limited_and_apart() -> None:
    node = Node()
    for number in range(8):
        node.ask("train.load", as_arrays(START), job=f"j{number}", version=0, config=TINY, training=PLAN)
    assert refusal(node.load).code == "busy"
    node.ask("train.end", job="j0")
    node.load()
