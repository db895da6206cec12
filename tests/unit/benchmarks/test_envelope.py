"""A result file is whole or absent, and its targets are computed."""

import json
from pathlib import Path

import pytest

from benchmarks import envelope


@pytest.mark.parametrize(
    ("value", "op", "limit", "met"),
    [(0.1, "<=", 0.2, True), (0.3, "<=", 0.2, False), (3, ">=", 3, True), (True, "==", True, True)],
)
def test_a_target_is_met_when_its_value_keeps_the_limit(
    value: float, op: str, limit: float, met: bool
) -> None:
    assert envelope.Target(name="x", value=value, op=op, limit=limit).met is met


def test_an_unknown_value_never_meets_a_target() -> None:
    assert not envelope.Target(name="x", value=None, op="<=", limit=1).met


def test_an_unknown_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of"):
        envelope.Target(name="x", value=1, op="<", limit=1)


def test_a_result_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.json"
    envelope.write(path, {"value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        envelope.write(path, {"value": float("nan")})
    assert json.loads(path.read_text()) == {"value": 1}
    assert [found.name for found in path.parent.iterdir()] == ["result.json"]


def test_the_machine_is_described() -> None:
    described = envelope.machine()
    assert described["cores"] >= 1
    assert described["memory_bytes"] > 0
