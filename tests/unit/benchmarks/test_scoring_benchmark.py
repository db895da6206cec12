"""The benchmark runs and its file has the form that all result files have."""

import json
from pathlib import Path

import pytest

from benchmarks import scoring


def test_a_quick_run_writes_rows_and_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scoring.json"
    monkeypatch.setattr("sys.argv", ["scoring", "--quick", "--json", str(path)])
    assert scoring.main() == 0
    result = json.loads(path.read_text())
    arms = (*scoring.VARIANTS, *scoring.CHOOSERS)
    assert {row["variant"] for row in result["rows"]} == set(arms)
    scored = [row for row in result["rows"] if row["variant"] in scoring.VARIANTS]
    assert all(row["eliminated"] == (1000 - 1) // (scoring.EPOCHS - 1) for row in scored)
    assert all(1 <= row["chosen"] < 1000 for row in result["rows"] if row["variant"] in scoring.CHOOSERS)
    assert [target["name"] for target in result["targets"]] == [f"{v}_median_s" for v in arms]
