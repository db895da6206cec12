"""What the demo asks for is what the API takes, for all that a scenario can say."""

from __future__ import annotations

from demo import serving
from orchestrator.core.triggers import Thresholds
from orchestrator.inference.request import DeploymentRequest
from scenarios.schema import parse


def test_the_demo_asks_for_a_deployment_with_all_that_the_scenario_says_of_it() -> None:
    said = {"min_nodes": 4, "thresholds": {"latency_s": 0.35, "cool_down_s": 5}, "monitor_interval_s": 2.0}
    scenario = parse({"name": "x", "inference": said}, source="x")
    asked = DeploymentRequest(**serving.request(scenario.inference, "job:job-1"))
    assert (asked.model, asked.min_nodes, asked.monitor_interval_s) == ("job:job-1", 4, 2.0)
    assert asked.thresholds == Thresholds(latency_s=0.35, cool_down_s=5)
    assert asked.cost == scenario.inference.cost
