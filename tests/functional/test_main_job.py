"""The main job end to end on a small network: real switches, controller, workers; nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "uts"

pytestmark = [
    pytest.mark.functional,
    pytest.mark.timeout(600),
]


def utopia(*words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("demo") / "demo.json"
    try:
        done = utopia("demo", "scenarios/small.yaml", "--json", str(path), timeout_s=540)
    finally:
        utopia("down", "scenarios/small.yaml")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert path.with_suffix(".html").stat().st_size > 10_000
    return json.loads(path.read_text())


def test_every_path_was_measured_near_its_configured_value(result: dict[str, Any]) -> None:
    assert len(result["measured"]) == 4
    for row in result["measured"]:
        assert row["error"]["delay"] < 0.2, row
        assert row["error"]["rate"] < 0.25, row
        assert row["measured"]["capacity_source"] == "packet_train"


def test_both_policies_trained_and_elimination_left_nodes_out(result: dict[str, Any]) -> None:
    everybody, eliminated = result["finetune"]["all"], result["finetune"]["eliminate"]
    assert [len(epoch["active"]) for epoch in everybody["epochs"]] == [4, 4, 4]
    assert [len(epoch["active"]) for epoch in eliminated["epochs"]] == [4, 3, 2]
    for run in (everybody, eliminated):
        assert run["final_loss"] < run["start_loss"] - 0.02
        assert run["unsettled"] == {}
    assert everybody["start_loss"] == pytest.approx(eliminated["start_loss"])


def test_the_split_model_says_what_the_unsplit_one_says(result: dict[str, Any]) -> None:
    inference = result["inference"]
    assert inference["tokens"] == 80
    assert inference["mismatches"] == 0
    for placement in inference["placements"]:
        assert placement["head"] in ("h1", "h2")
        nodes = {placement["head"], *(stage["node"] for stage in placement["stages"])}
        assert len(nodes) >= 3


def test_the_degraded_link_was_measured_by_the_controller(result: dict[str, Any]) -> None:
    link = result["inference"]["degrade"]
    assert link["controller"]["measured_after_s"] > link["before_s"] + 0.1
    assert any(
        crossing for decision in result["inference"]["decisions"] for crossing in decision["crossings"]
    )


def test_nothing_is_left_behind(result: dict[str, Any]) -> None:
    del result
    bridges = subprocess.run(["ovs-vsctl", "list-br"], capture_output=True, text=True, check=True).stdout
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    interfaces = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert f"{PREFIX}-" not in bridges + spaces + interfaces
    mine = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in mine if f"/run/utopia/{PREFIX}" in line]
