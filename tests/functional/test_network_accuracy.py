"""The network benchmark runs on a real testbed and says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.network_accuracy import figures
from topologies import state, testbed

PREFIX = "rba"
ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = [pytest.mark.functional]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the benchmark once, at its smallest."""
    target = tmp_path_factory.mktemp("accuracy") / "out.json"
    words = ["--quick", "--prefix", PREFIX, "--port", "6727", "--json", str(target)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.network_accuracy", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        yield json.loads(target.read_text(encoding="utf-8"))
    finally:
        testbed.down(PREFIX)


def test_it_measures_every_path_idle_and_loaded(result: Any) -> None:
    assert result["failed_networks"] == []
    for phase in ("idle", "loaded"):
        rows = [row for row in result["rows"] if row["kind"] == "path_delay" and row["phase"] == phase]
        assert {row["host"] for row in rows} == {"h1", "h2", "h3"}
        known = [s for row in rows for s in row["samples"] if None not in (s["truth_s"], s["measured_s"])]
        assert len(known) > len(rows)


def test_every_agreed_key_is_there_and_the_envelope_is_whole(result: Any) -> None:
    for phase in ("idle", "loaded"):
        assert set(figures.KEYS) <= set(result["figures"][phase])
    assert {"command", "seed", "commit", "machine", "profile", "rows", "targets"} <= set(result)
    assert all({"name", "value", "op", "limit", "met"} <= set(target) for target in result["targets"])


def test_the_classic_method_stands_beside_it_and_knows_no_last_mile(result: Any) -> None:
    """Figures leave out what was measured while the emulator was late; this much holds even then."""
    idle = figures.compute([{**row, "valid": True} for row in result["rows"]])["idle"]
    assert idle["classic"]["delay_error_p95_ms"] > idle["delay_error_p95_ms"]
    assert idle["classic"]["bandwidth_error_p95"] > 10


def test_background_traffic_arrived_and_was_counted(result: Any) -> None:
    flows = [row for row in result["rows"] if row["kind"] == "traffic"]
    assert {flow["traffic"] for flow in flows} == {"udp", "tcp"}
    assert [flow for flow in flows if not flow.get("received_packets", flow.get("received_bytes"))] == []


def test_a_doubled_delay_is_seen(result: Any) -> None:
    steps = [row for row in result["rows"] if row["kind"] == "detection"]
    assert len(steps) == 2
    assert [step for step in steps if step["value_s"] is None] == []


def test_nothing_is_left_behind(result: Any) -> None:
    assert result
    assert state.inventory(PREFIX) == []
