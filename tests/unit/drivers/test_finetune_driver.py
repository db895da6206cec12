"""The fine-tuning driver on doubles: what it adds up, whom it believes, how it ends."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from finetune_world import NODES, World

from orchestrator.core.errors import InvalidPolicy
from orchestrator.errors import Conflict, InvalidRequest, NotFound, WorkerTimeout


@pytest.fixture
def world():
    made = World()
    yield made
    made.jobs.stop(timeout_s=5)


def test_updates_are_averaged_by_samples_and_every_node_ends_with_the_result(world):
    world.workers.deltas |= {"h1": 5.0}
    world.workers.samples |= {"h1": 24}
    record = world.run(epochs=2)
    # (24 * 5 + 3 * 8 * 1) / 48 = 3 per epoch
    np.testing.assert_allclose(world.models.saved[record.id]["w"], [6.0, 6.0])
    assert record.state == "completed"
    assert record.summary["start_loss"] == 10
    assert record.summary["final_loss"] == 4
    assert {node: version for node, (version, _) in world.workers.held.items()} == dict.fromkeys(NODES, 2)
    assert record.summary["settled"] == NODES or list(record.summary["settled"]) == list(NODES)


def test_an_ended_job_holds_no_parameters_while_the_next_one_is_awaited(world):
    outcome = world.run(epochs=2, training={"sequence_length": 16, "outer_optimiser": "nesterov"})
    _, ended, thread = world.jobs._running
    thread.join(timeout=5)
    assert outcome.state == "completed"
    assert not thread.is_alive()
    assert (ended._versions._known, ended._versions._sums) == ({}, {})
    assert ended._versions.outer_state() == {}
    assert ended._intake._memory is None


TOO_LITTLE = 20_000
"""Less than the logits of one batch."""


def test_a_node_with_too_little_memory_is_left_out_before_anything_is_sent(world):
    world.pool.join("h2", free_memory_bytes=TOO_LITTLE)
    world.pool.join("h3", free_memory_bytes=10**9)
    record = world.run()
    assert record.spec["nodes"] == ["h1", "h3", "h4"]
    assert "h2" not in {node for node, _, _ in world.pool.asked}
    (left_out,) = [d for d in world.entries(record.id, "decision") if d["verdict"] == "leave out"]
    assert left_out["reason"].startswith("h2: 0.0 MB of its memory are free, the job takes at least 0.1 MB")


def test_a_node_that_is_named_must_have_the_memory(world):
    world.pool.join("h2", free_memory_bytes=TOO_LITTLE)
    with pytest.raises(InvalidRequest, match=r"h2: 0\.0 MB of its memory are free.*lora_rank"):
        world.submit(nodes=("h1", "h2"))
    assert world.pool.asked == []


def test_a_job_for_which_no_node_has_the_memory_is_refused(world):
    for node in NODES:
        world.pool.join(node, free_memory_bytes=TOO_LITTLE)
    with pytest.raises(Conflict, match=r"no node can take part: h1: 0\.0 MB"):
        world.submit()


def test_it_says_who_is_left_out_if_too_few_are_left_to_eliminate(world):
    world.pool.join("h2", free_memory_bytes=TOO_LITTLE)
    with pytest.raises(InvalidPolicy, match=r"only 3 nodes.*left out are h2: 0\.0 MB"):
        world.submit(policy="eliminate", epochs=3)


def test_an_outer_learning_rate_scales_the_step(world):
    record = world.run(training={"sequence_length": 16, "outer_learning_rate": 0.5})
    np.testing.assert_allclose(world.models.saved[record.id]["w"], [1.0, 1.0])


def poison(value):
    def spoil(_report, delta):
        delta["w"][0] = value

    return spoil


def reshape(_report, delta):
    delta["w"] = np.zeros((2, 1), dtype=np.float32)


def rename(_report, delta):
    delta["v"] = delta.pop("w")


def drop(_report, delta):
    delta.clear()


def field(name, value):
    def spoil(report, _delta):
        report[name] = value

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        poison(np.nan),
        poison(np.inf),
        reshape,
        rename,
        drop,
        field("samples", 0),
        field("samples", "many"),
        field("train_s", float("nan")),
        field("loss", None),
        field("epoch", 7),
        field("version", 9),
    ],
)
def test_garbage_costs_its_sender_its_own_contribution_and_nothing_else(world, spoil):
    world.workers.spoil["h2"] = spoil
    world.workers.deltas["h2"] = 100.0
    record = world.run()
    assert record.state == "completed"
    np.testing.assert_allclose(world.models.saved[record.id]["w"], [2.0, 2.0])
    reports = world.entries(record.id, "epoch")
    assert "h2" not in reports[0]["contributed"]
    assert reports[0]["failed"]["h2"].startswith("refused: ")


def test_a_node_that_is_lost_in_a_round_is_done_without(world):
    def vanish(_report, _delta):
        world.pool.leave("h3")

    world.workers.spoil["h3"] = vanish
    record = world.run()
    assert record.state == "completed"
    assert "h3" in record.summary["unsettled"]


def test_a_node_that_holds_other_parameters_than_sent_takes_no_part(world):
    honest = world.workers.load

    def lie(node, fields, tensors):
        answer = honest(node, fields, tensors)
        if node == "h4":
            answer.fields["digest"] = "0" * 64
        return answer

    world.pool.answers["train.load"] = lie
    record = world.run()
    assert record.state == "completed"
    assert "digest" in world.entries(record.id, "epoch")[0]["failed"]["h4"]


def test_a_job_whose_nodes_all_fail_fails_with_the_reasons(world):
    def refuse(node, _fields, _tensors):
        raise WorkerTimeout(f"node {node} did not answer")

    world.pool.answers["train.load"] = refuse
    record = world.run()
    assert record.state == "failed"
    assert "h1 did not answer" in record.reason


def test_an_evaluation_that_breaks_fails_the_job(world, monkeypatch):
    monkeypatch.setattr(world.models, "loss", lambda *_, **__: float("nan"))
    record = world.run()
    assert record.state == "failed"
    assert "loss" in record.reason


def test_too_little_data_fails_the_job_by_name(world, monkeypatch):
    monkeypatch.setattr(world.models, "tokens", lambda *_, **__: np.arange(70, dtype=np.int32))
    record = world.run()
    assert record.state == "failed"
    assert "raise data_bytes" in record.reason


def test_elimination_goes_by_the_policy_and_is_explained(world):
    record = world.run(policy="eliminate", epochs=3)
    kept = [len(report["active"]) for report in world.entries(record.id, "epoch")]
    assert sorted(set(kept)) == [2, 3, 4]
    verdicts = [
        item["verdict"] for item in world.entries(record.id, "decision") if item["kind"] == "eliminate"
    ]
    assert [verdict.split()[0] for verdict in verdicts] == ["eliminate", "eliminate", "keep"]


def test_one_job_runs_at_a_time_and_can_be_cancelled(world):
    release = threading.Event()

    def wait(_report, _delta):
        assert release.wait(10)

    world.workers.spoil = dict.fromkeys(NODES, wait)
    first = world.submit()
    with pytest.raises(Conflict, match=first.id):
        world.submit()
    world.jobs.cancel(first.id)
    release.set()
    record = world.finish(first.id)
    assert (record.state, record.reason) == ("cancelled", "cancelled by the user")
    with pytest.raises(Conflict, match="cancelled"):
        world.jobs.cancel(first.id)
    world.workers.spoil = {}
    assert world.run().state == "completed"


def test_what_cannot_run_is_refused_before_anything_starts(world):
    world.pool.leave("h4")
    with pytest.raises(InvalidPolicy, match="N > T > 1"):
        world.submit(policy="eliminate", epochs=3)
    with pytest.raises(InvalidRequest, match="h4"):
        world.submit(nodes=["h1", "h4"])
    with pytest.raises(NotFound, match="h9"):
        world.submit(nodes=["h9"])
    with pytest.raises(NotFound, match="nowhere"):
        world.submit(model="nowhere")
    with pytest.raises(InvalidRequest, match="/nope"):
        world.submit(data="/nope")
    assert world.store.records(limit=9, offset=0)[1] == 0
    assert world.pool.asked == []


def test_the_same_seed_gives_every_node_the_same_data_and_sampler_seeds(world):
    def run():
        world.pool.asked.clear()
        world.run(seed=5)
        return sorted(
            (node, fields["epoch"], fields["seed"])
            for node, kind, fields in world.pool.asked
            if kind == "train.run"
        )

    first, second = run(), run()
    assert first == second
    assert len({seed for _, _, seed in first}) == len(first), "every node and epoch has its own"


def test_updates_cross_the_wire_in_the_form_that_was_asked_for_and_are_decoded(world):
    def largest_only(_report, delta):
        values = delta.pop("w")
        delta |= {"w:index": np.array([1], dtype=np.int32), "w:value": values[1:]}

    world.workers.spoil = dict.fromkeys(NODES, largest_only)
    training = {"sequence_length": 16, "update_encoding": "topk", "topk_ratio": 0.5}
    record = world.run(training=training)
    np.testing.assert_allclose(world.models.saved[record.id]["w"], [0.0, 2.0])


@pytest.mark.parametrize("index", [-1, 2, 2**31 - 1])
def test_places_outside_of_a_tensor_cost_their_sender_its_contribution(world, index):
    def sparse(place):
        def spoil(_report, delta):
            delta.pop("w")
            delta |= {"w:index": np.array([place], np.int32), "w:value": np.ones(1, np.float32)}

        return spoil

    world.workers.spoil = {**dict.fromkeys(NODES, sparse(0)), "h2": sparse(index)}
    record = world.run(training={"sequence_length": 16, "update_encoding": "topk", "topk_ratio": 0.5})
    np.testing.assert_allclose(world.models.saved[record.id]["w"], [2.0, 0.0])
    assert "w:index" in world.entries(record.id, "epoch")[0]["failed"]["h2"]


def test_momentum_of_the_outer_optimiser_carries_over_rounds(world):
    training = {"sequence_length": 16, "outer_optimiser": "nesterov", "outer_momentum": 0.5}
    record = world.run(training=training)
    # velocity 1, then 1.5; steps 1 + 0.5 * 1 and 1 + 0.5 * 1.5
    np.testing.assert_allclose(world.models.saved[record.id]["w"], [3.25, 3.25])
    assert set(world.checkpoints.newest.outer) == {"velocity/w", "steps"}


def test_in_gradient_rounds_the_schedule_is_the_outer_ones(world):
    training = {"sequence_length": 16, "synchronisation": "gradient", "schedule": "linear"}
    record = world.run(epochs=2, training=training)
    np.testing.assert_allclose(world.models.saved[record.id]["w"], [1.5, 1.5])
