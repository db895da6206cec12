"""A job whose process was killed: what the next process does with it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from finetune_world import NODES, World

from orchestrator.errors import CheckpointError


class KilledWorld(World):
    """A process that is killed while the nodes train an epoch; then another one is started."""

    def __init__(self):
        super().__init__()
        self.dead = threading.Event()
        self.reached = threading.Semaphore(0)

    def kill_in(self, epoch: int, **values) -> str:
        """Run a job up to `epoch`, in which no node ever answers, and drop the process."""

        def stall(report, _delta):
            if report["epoch"] == epoch and not self.dead.is_set():
                self.reached.release()
                assert self.dead.wait(10)

        self.workers.spoil = dict.fromkeys(NODES, stall)
        job = self.submit(**values).id
        for _ in NODES:  # with all of them there, no message of before is under way any more
            assert self.reached.acquire(timeout=10)
        deadline = time.monotonic() + 10
        while epoch and self.checkpoints.saved != list(range(1, epoch + 1)):
            assert time.monotonic() < deadline, self.checkpoints.saved
            time.sleep(0.005)
        run, thread = self.jobs._running[1:]
        run._keeper._checkpoints = Dead()
        run._ports = replace(run._ports, store=Dead(), events=Dead())
        run._inbox.put(None)  # its loop ends on what it does not know
        thread.join(10)
        self.dead.set()
        assert self.store.get(job).ended_at is None
        self.pool.asked.clear()
        self.workers.spoil = {}
        return job

    def restart(self):
        self.jobs = self.start_process()
        return self.jobs.resume()


class Dead:
    """What a dead process still has of its store: nothing happens, whatever is called."""

    def __getattr__(self, _name):
        return lambda *_, **__: None


@pytest.fixture
def world():
    made = KilledWorld()
    yield made
    made.jobs.stop(timeout_s=5)


def test_a_killed_job_goes_on_with_its_last_round_and_ends_as_if_nothing_had_happened(world):
    undisturbed = World()
    expected = undisturbed.models.saved[undisturbed.run(epochs=4, seed=5).id]["w"]
    job = world.kill_in(2, epochs=4, seed=5)
    assert world.restart() == job
    record = world.finish(job)
    assert record.state == "completed", record.reason
    np.testing.assert_array_equal(world.models.saved[job]["w"], expected)
    epochs = [fields["epoch"] for _, kind, fields in world.pool.asked if kind == "train.run"]
    assert sorted(set(epochs)) == [2, 3], "epochs 0 and 1 are not trained again"
    assert record.summary["resumes"] == 1
    assert record.summary["start_loss"] == 10
    world.jobs._running[2].join(10)
    assert job not in world.checkpoints.kept, "what has ended needs no checkpoint"


def test_nodes_that_still_hold_the_job_are_not_sent_model_and_data_again(world):
    job = world.kill_in(1, epochs=3)
    world.workers.data_digests["h4"] = "of other data"
    world.restart()
    world.finish(job)
    loaded = [node for node, kind, _ in world.pool.asked if kind in ("train.load", "train.data")]
    assert sorted(set(loaded)) == ["h4"]


def test_a_node_with_other_parameters_is_brought_to_those_of_the_checkpoint(world):
    job = world.kill_in(1, epochs=3)
    version, parameters = world.workers.held["h2"]
    world.workers.held |= {"h2": (version, parameters + 1), "h3": (version + 1, parameters + 2)}
    world.restart()
    assert world.finish(job).state == "completed"
    np.testing.assert_allclose(world.models.saved[job]["w"], [3.0, 3.0])
    updated = [node for node, kind, fields in world.pool.asked if kind == "train.update" and "anew" in fields]
    assert sorted(updated) == ["h2", "h3"]


def test_a_job_without_a_checkpoint_begins_again(world):
    job = world.kill_in(0, epochs=2)
    assert world.checkpoints.kept == {}
    world.restart()
    record = world.finish(job)
    assert (record.state, record.summary["resumes"]) == ("completed", 1)
    np.testing.assert_allclose(world.models.saved[job]["w"], [2.0, 2.0])


def test_a_resumed_job_waits_for_its_nodes(world):
    job = world.kill_in(1, epochs=2)
    for node in NODES:
        world.pool.leave(node)
    world.restart()
    told = []
    for entry in world.events.follow(job, quiet_s=0.05):
        if entry and entry.type == "state" and "waiting for h1, h2, h3, h4" in entry.body["reason"]:
            told.append(entry)
            break
    for node in NODES:
        world.pool.join(node)
    assert world.finish(job).state == "completed"
    assert told


def test_a_job_that_gets_no_further_is_given_up(world):
    job = world.kill_in(1, epochs=2)
    for _ in range(3):
        world.checkpoints.count_attempt(job, 1)
    assert world.restart() is None
    record = world.store.get(job)
    assert record.state == "failed"
    assert "resumed 3 times from version 1" in record.reason


def test_data_that_changed_meanwhile_end_the_job(world, monkeypatch):
    job = world.kill_in(1, epochs=2)
    monkeypatch.setattr(world.models, "tokens", lambda *_, **__: np.arange(3000, dtype=np.int32) % 256)
    world.restart()
    record = world.finish(job)
    assert record.state == "failed"
    assert "have changed since the job began" in record.reason


def test_a_job_of_a_request_that_is_no_longer_understood_fails_by_name(world):
    job = world.kill_in(1, epochs=2)
    record = world.store.get(job)
    world.store._records[job] = replace(record, spec={**record.spec, "policy": "forgotten"})
    assert world.restart() is None
    assert "cannot be resumed" in world.store.get(job).reason


def test_a_full_disk_is_told_and_the_job_goes_on(world):
    world.checkpoints.fault = CheckpointError("no space left on device")
    record = world.run(epochs=3)
    assert record.state == "completed"
    told = world.entries(record.id, "checkpoint")
    assert [item["written"] for item in told] == [False, False, False]
    assert "no space left" in told[0]["reason"]


def test_every_round_is_kept_once(world):
    world.run(epochs=3)
    assert world.checkpoints.saved == [1, 2, 3]


def test_without_an_unfinished_job_nothing_is_resumed(world):
    record = world.run()
    assert world.restart() is None
    assert world.store.get(record.id).state == "completed"


def test_a_node_that_comes_back_within_a_job_keeps_its_data(world):
    begun, gone = threading.Event(), threading.Event()

    def wait(report, _delta):
        if report["epoch"] == 1:
            begun.set()
            assert gone.wait(10)

    world.workers.spoil["h1"] = wait
    job = world.submit(epochs=3).id
    assert begun.wait(10)
    world.pool.asked.clear()
    world.pool.leave("h3")
    world.pool.join("h3")
    gone.set()
    assert world.finish(job).state == "completed"
    assert "train.data" not in [kind for _, kind, _ in world.pool.asked]


def test_where_its_nodes_are_gone_for_good_a_job_that_was_left_is_ended_and_another_one_can_begin(world):
    job = world.kill_in(1, epochs=3)
    world.jobs = world.start_process()
    world.jobs.abandon()
    record = world.store.get(job)
    assert (record.state, record.reason) == ("interrupted", "the orchestrator stopped before it ended")
    assert world.checkpoints.kept == {}
    assert world.finish(world.submit(epochs=2).id).state == "completed"


def test_a_stopped_process_suspends_its_job_and_the_next_one_goes_on_with_it(world):
    undisturbed = World()
    expected = undisturbed.models.saved[undisturbed.run(epochs=4, seed=5).id]["w"]
    begun, go_on = threading.Event(), threading.Event()

    def wait(report, _delta):
        if report["epoch"] == 2:
            begun.set()
            assert go_on.wait(10)

    world.workers.spoil["h1"] = wait
    job = world.submit(epochs=4, seed=5).id
    assert begun.wait(10)
    world.jobs.stop(timeout_s=5)
    record = world.store.get(job)
    assert (record.state, record.ended_at) == ("suspended", None)
    assert "goes on from version 2" in record.reason
    assert world.checkpoints.saved[-1] == 2
    go_on.set()
    world.workers.spoil = {}
    assert world.restart() == job
    assert world.finish(job).state == "completed"
    np.testing.assert_array_equal(world.models.saved[job]["w"], expected)


def test_a_job_may_be_suspended_at_the_same_round_as_often_as_one_likes(world):
    job = world.kill_in(1, epochs=2)
    for _ in range(5):
        world.checkpoints.count_attempt(job, 1)
    world.store.update(job, state="suspended")
    assert world.restart() == job
    assert world.finish(job).state == "completed"


def test_a_job_that_waits_for_its_nodes_can_be_suspended_and_cancelled(world):
    job = world.kill_in(1, epochs=2)
    for node in NODES:
        world.pool.leave(node)
    world.restart()
    world.jobs.stop(timeout_s=5)
    assert world.store.get(job).state == "suspended"
    world.restart()
    world.jobs.cancel(job)
    assert world.finish(job).state == "cancelled"
