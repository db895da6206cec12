"""The orchestrator of a testbed killed with -9 within a job, and updates behind a node on a thin link."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import requests

from scenarios.schema import Scenario, parse
from topologies import testbed
from topologies.status import Status

PREFIX = "tdy"
SLOW_BPS = 1.5e6
JOB = {
    "epochs": 3,
    "policy": "all",
    "seed": 7,
    "data_bytes": 120_000,
    "training": {"local_steps": 2, "batch_size": 4, "sequence_length": 32, "learning_rate": 1e-3},
}

pytestmark = [pytest.mark.functional, pytest.mark.timeout(300)]


def scenario() -> Scenario:
    network = {"prefix": PREFIX, "openflow_port": 6773, "northbound_port": 8273, "api_port": 8274}
    return parse(
        {
            "name": "tended",
            "seed": 5,
            "topology": {"hosts": 4, "domains": 2},
            "links": {"setup": 3, "rate_floor_bps": 20e6},
            "devices": {"trusted": []},
            "finetune": {"policies": ["all"]},
            "network": network,
        },
        source="test",
    )


@pytest.fixture(scope="module")
def bed() -> Iterator[Status]:
    try:
        yield testbed.up(scenario(), tied=True, progress=lambda text: None)
    finally:
        testbed.down(PREFIX)


def ask(bed: Status, method: str, path: str, body: Any = None) -> Any:
    answer = requests.request(method, f"{bed.urls['api']}{path}", json=body, timeout=20)
    assert answer.status_code < 400, answer.text
    return answer.json()


def eventually(condition: Callable[[], Any], *, what: str, within_s: float = 120.0) -> Any:
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            if found := condition():
                return found
        except requests.ConnectionError:
            pass
        assert time.monotonic() < deadline_s, f"{what}: not within {within_s:g} s"
        time.sleep(0.1)


def ended(bed: Status, job: str) -> Any:
    shown = ask(bed, "GET", f"/api/v1/jobs/{job}")
    return shown if shown["state"] in ("completed", "failed", "cancelled", "interrupted") else None


def test_a_killed_orchestrator_is_started_again_and_goes_on_with_its_job_by_itself(bed: Status) -> None:
    job = ask(bed, "POST", "/api/v1/jobs", JOB)["id"]
    eventually(lambda: ask(bed, "GET", f"/api/v1/jobs/{job}")["epochs"], what="an epoch is done")
    before = bed.pids["orchestrator"]
    assert psutil.pid_exists(before)
    os.kill(before, signal.SIGKILL)
    shown = eventually(lambda: ended(bed, job), what="the job has ended")
    assert shown["state"] == "completed", shown["reason"]
    assert shown["summary"]["resumes"] == 1
    assert [epoch["epoch"] for epoch in shown["epochs"]] == list(range(JOB["epochs"]))
    now = testbed.Client(PREFIX).status()
    assert any(
        re.search(r"orchestrator ended with status -9 and was started again \(1 of", text)
        for text in now.trouble
    )
    assert now.pids["orchestrator"] != before


def test_behind_a_node_on_a_thin_link_the_others_updates_go_to_files_and_all_count(bed: Status) -> None:
    fastest = max((host for host in bed.hosts if host["worker_pid"]), key=lambda host: host["compute_flops"])
    name, switch = fastest["name"], fastest["switch"]
    link = next(item["name"] for item in bed.links if name in (item["a"], item["b"]))
    client = testbed.Client(PREFIX)
    client.degrade(link, f"{name}>{switch}", rate_bps=SLOW_BPS)  # its update comes first, and for seconds
    try:
        job = ask(bed, "POST", "/api/v1/jobs", {**JOB, "epochs": 2})["id"]
        shown = eventually(lambda: ended(bed, job), what="the job has ended")
    finally:
        client.restore(link)
    assert shown["state"] == "completed", shown["reason"]
    assert [sorted(epoch["contributed"]) for epoch in shown["epochs"]] == [["h1", "h2", "h3", "h4"]] * 2
    assert shown["summary"]["spooled_updates"] > 0
