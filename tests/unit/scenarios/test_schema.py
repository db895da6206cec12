"""A scenario is refused with one line that names field, value and way out."""

from pathlib import Path

import pytest

from scenarios import schema

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda path: path.name)
def test_every_scenario_of_the_project_is_valid(path: Path) -> None:
    assert schema.load(path).name


@pytest.mark.parametrize(
    ("document", "field", "way_out"),
    [
        ({"name": "x", "topolgy": {}}, "topolgy: unknown key", "known keys here: devices"),
        ({"name": "x", "links": {"bandwidth": 3}}, "links.bandwidth: unknown key", "rate_floor_bps"),
        ({"name": "x", "links": {"setup": 9}}, "links.setup: 9", "1, 2 or 3"),
        ({"name": "x", "topology": {"hosts": "many"}}, "topology.hosts: 'many'", "valid integer"),
        (
            {"name": "x", "topology": {"hosts": 2, "domains": 3}},
            "topology: domains is 3",
            "at most one domain",
        ),
        ({"name": "x", "finetune": {"epochs": 12}}, "finetune.epochs is 12", "fewer epochs or more hosts"),
        ({"name": "x", "finetune": {"weights": {"delay": 0.5}}}, "sum to 1.5, not 1", "divide each by 1.5"),
        (
            {"name": "x", "finetune": {"weights": {"delay": -0.2}}},
            "weight delay is -0.2",
            "must be at least 0",
        ),
        (
            {"name": "x", "finetune": {"oort": {"shares": 0.2}}},
            "finetune.oort.shares: unknown key",
            "pace_step, share, window",
        ),
        (
            {"name": "x", "finetune": {"oort": {"window": 10**400}}},
            "finetune.oort: oort: window is 1",
            "must be in 1..10000",
        ),
        (
            {"name": "x", "inference": {"thresholds": {"utilisation": 0}}},
            "inference.thresholds: thresholds: utilisation is 0",
            "must be above 0 and at most 1",
        ),
        (
            {"name": "x", "finetune": {"deadline": {"deadline_s": float("inf")}}},
            "finetune.deadline: deadline: deadline_s is inf",
            "must be above 0 and finite",
        ),
        ({"name": "x", "devices": {"trusted": ["h99"]}}, "devices.trusted names h99", "h1 to h12"),
        ({"name": "No Spaces"}, "name: 'No Spaces'", "pattern"),
        ({}, "name", "required"),
    ],
)
def test_a_mistake_is_named_with_its_way_out(document: object, field: str, way_out: str) -> None:
    with pytest.raises(schema.ScenarioError) as refusal:
        schema.parse(document, source="test")
    assert field in str(refusal.value)
    assert way_out in str(refusal.value)


def test_elimination_is_not_asked_for_so_epochs_may_exceed_nodes() -> None:
    scenario = schema.parse({"name": "x", "finetune": {"epochs": 40, "policies": ["all"]}}, source="test")
    assert scenario.finetune.epochs == 40


@pytest.mark.parametrize("text", ["- a\n- b\n", "42\n", ""])
def test_a_file_that_is_no_map_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(schema.ScenarioError, match="must be a map"):
        schema.load(path)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(schema.ScenarioError, match="No such file"):
        schema.load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [unclosed")
    with pytest.raises(schema.ScenarioError, match="not valid YAML"):
        schema.load(broken)
    with pytest.raises(schema.ScenarioError, match="cannot be read"):
        schema.load(tmp_path)
