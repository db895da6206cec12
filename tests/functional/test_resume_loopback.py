"""The orchestrator killed with -9 in the middle of a job: the next goes on and ends with the same loss."""

from __future__ import annotations

import pytest
from loopback_orchestrator import system_of

FLOPS = {"h1": 4e9, "h2": 4e9, "h3": 2e9}
JOB = {
    "epochs": 5,
    "policy": "all",
    "seed": 11,
    "training": {"local_steps": 6, "batch_size": 4, "sequence_length": 32, "learning_rate": 3e-3},
    "data_bytes": 40_000,
    "round_timeout_s": 30,
}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    with system_of(tmp_path_factory.mktemp("resume"), FLOPS) as made:
        yield made


def await_workers(system):
    system.wait(lambda: system.alive() == set(FLOPS), what="all workers are alive")


@pytest.fixture(scope="module")
def undisturbed(system):
    made = system.post("/api/v1/jobs", {**JOB, "model": system.model})
    shown = system.wait_state(f"/api/v1/jobs/{made['id']}", ("completed", "failed"))
    assert shown["state"] == "completed", shown["reason"]
    return shown


def checkpoints(system, job):
    return sorted((system.directory / "state" / "checkpoints" / job).glob("v*.json"))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_killed_orchestrator_goes_on_with_the_job_at_its_last_round(system, undisturbed, damaged):
    made = system.post("/api/v1/jobs", {**JOB, "model": system.model})
    address = f"/api/v1/jobs/{made['id']}"
    system.wait(lambda: len(checkpoints(system, made["id"])) == 2, what="two rounds are kept")
    done = max(epoch["epoch"] for epoch in system.get(address)["epochs"])
    system.kill_orchestrator()
    kept = checkpoints(system, made["id"])
    assert 1 <= len(kept) <= 3, "at most the newest two, and one that is being written"
    if damaged:  # as a disk does that loses what was written last
        kept[-1].write_bytes(kept[-1].read_bytes()[:100])
    versions = [int(path.stem[1:]) for path in kept]
    began_at = versions[-2] if damaged else versions[-1]
    if not damaged:
        assert began_at >= done, "at most one round is lost"

    system.start_orchestrator()
    shown = system.wait_state(address, ("completed", "failed"))
    assert shown["state"] == "completed", (shown["reason"], system.log("orchestrator"))
    assert shown["summary"]["resumes"] == 1
    assert [epoch["epoch"] for epoch in shown["epochs"]] == list(range(JOB["epochs"]))
    assert all(len(epoch["contributed"]) == len(FLOPS) for epoch in shown["epochs"])
    expected = undisturbed["summary"]["final_loss"]
    assert shown["summary"]["final_loss"] == pytest.approx(expected, rel=0.01)
    system.wait(lambda: not checkpoints(system, made["id"]), what="an ended job leaves no checkpoint")
    decisions = system.get(f"{address}/decisions")["items"]
    resumed = next(item for item in decisions if item["verdict"] == "resume")
    assert f"from version {began_at}" in resumed["reason"]
    loaded = undisturbed["summary"]["bytes"]["load_sent_bytes"]
    sent = shown["summary"]["bytes"]["load_sent_bytes"]
    if damaged:  # the nodes hold a newer version: they are sent the older one, but not their data
        assert loaded < sent < 2 * loaded
    else:
        assert sent == loaded, "no node was sent model or data again"


def test_an_orchestrator_that_is_killed_again_and_again_still_finishes(system, undisturbed):
    made = system.post("/api/v1/jobs", {**JOB, "model": system.model})
    address = f"/api/v1/jobs/{made['id']}"
    for rounds in (1, 2):
        system.wait(
            lambda rounds=rounds: len(system.get(address)["epochs"]) >= rounds, what=f"{rounds} rounds"
        )
        system.kill_orchestrator()
        system.start_orchestrator()
    shown = system.wait_state(address, ("completed", "failed"))
    assert shown["state"] == "completed", (shown["reason"], system.log("orchestrator"))
    assert shown["summary"]["resumes"] == 2
    assert shown["summary"]["final_loss"] == pytest.approx(undisturbed["summary"]["final_loss"], rel=0.01)


def test_an_orchestrator_that_is_stopped_suspends_the_job_and_the_next_goes_on(system, undisturbed):
    made = system.post("/api/v1/jobs", {**JOB, "model": system.model})
    address = f"/api/v1/jobs/{made['id']}"
    system.wait(lambda: system.get(address)["epochs"], what="a round is done")
    assert system.stop("orchestrator") == 0
    kept = checkpoints(system, made["id"])
    assert kept, "the last round is kept"
    system.start_orchestrator()
    shown = system.wait_state(address, ("completed", "failed"))
    assert shown["state"] == "completed", (shown["reason"], system.log("orchestrator"))
    assert [epoch["epoch"] for epoch in shown["epochs"]] == list(range(JOB["epochs"]))
    assert shown["summary"]["final_loss"] == pytest.approx(undisturbed["summary"]["final_loss"], rel=0.01)
    states = [
        item["reason"] for item in system.get(f"{address}/decisions")["items"] if item["verdict"] == "resume"
    ]
    assert f"from version {int(kept[-1].stem[1:])}" in states[0]
