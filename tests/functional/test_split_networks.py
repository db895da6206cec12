"""The emulated-network part of the split benchmark runs, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.split_overhead.emulated_link import PREFIX
from topologies import state

pytestmark = [pytest.mark.functional, pytest.mark.timeout(120)]


def test_a_quick_run_measures_a_cell_against_its_limits(tmp_path: Path) -> None:
    path = tmp_path / "networks.json"
    command = [sys.executable, "-m", "benchmarks.split_overhead", "--quick", "--part", "networks"]
    done = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows = {row["arm"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["decode", "prompt", "prompt rows", "bulk"]
    assert rows["decode"]["limit_s"] > 0.02, "two delays of 10 ms"
    assert rows["decode"]["token_s"] > 0.02, "the link delays"
    assert 0 < rows["bulk"]["use_of_rate"] < 1.2, "the link shapes"
    assert 0 < rows["prompt rows"]["use_of_rate"] < 1.2
    assert all("emulation_kept_up" in row for row in rows.values())
    assert state.inventory(PREFIX) == []
