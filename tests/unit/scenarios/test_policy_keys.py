"""What scenarios and requests say of policies is what the policies are given."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from orchestrator.core.selection import (
    POLICIES,
    DeadlineOptions,
    EliminationOptions,
    OortOptions,
    PlanOptions,
    PolicyOptions,
)
from orchestrator.finetune.request import JobRequest
from scenarios.schema import ScenarioError, parse

OPTIONS = PolicyOptions(
    eliminate=EliminationOptions(wait="all", rejoin_after=3),
    deadline=DeadlineOptions(deadline_s=2.5),
    oort=OortOptions(pace=0.9, window=7),
    plan=PlanOptions(drift=2.0),
)


@pytest.mark.parametrize("name", [item.name for item in fields(PolicyOptions)])
def test_what_is_asked_of_a_policy_is_kept_with_the_job_and_read_back(name: str) -> None:
    asked = getattr(OPTIONS, name)
    request = JobRequest(**{name: asdict(asked)})
    assert getattr(JobRequest(**request.model_dump(mode="json")), name) == asked


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_can_be_asked_for_in_a_scenario_and_by_the_api(policy: str) -> None:
    scenario = parse({"name": "x", "finetune": {"policies": [policy]}}, source="x")
    assert scenario.finetune.policies == (policy,)
    assert JobRequest(policy=policy).policy == policy


def test_a_drawn_elimination_has_elimination_s_condition() -> None:
    document = {"name": "x", "topology": {"hosts": 3}, "finetune": {"policies": ["random"], "epochs": 5}}
    with pytest.raises(ScenarioError, match="elimination needs N > T > 1"):
        parse(document, source="x")
