"""The scenario's keys for policies say the same as the policies themselves."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from orchestrator.core.energy import PowerProfile
from orchestrator.core.selection import POLICIES, PolicyOptions
from orchestrator.finetune.request import JobRequest
from scenarios.schema import Finetune, ScenarioError, parse


@pytest.mark.parametrize("name", [item.name for item in fields(PolicyOptions)])
def test_every_option_has_a_key_with_the_same_default(name: str) -> None:
    assert getattr(Finetune(), name).model_dump() == asdict(getattr(PolicyOptions(), name))


def test_the_power_profile_has_keys_with_the_same_defaults() -> None:
    assert Finetune().power.model_dump() == asdict(PowerProfile())


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_can_be_asked_for_in_a_scenario_and_by_the_api(policy: str) -> None:
    scenario = parse({"name": "x", "finetune": {"policies": [policy]}}, source="x")
    assert scenario.finetune.policies == (policy,)
    assert JobRequest(policy=policy).policy == policy


def test_a_drawn_elimination_has_elimination_s_condition() -> None:
    document = {"name": "x", "topology": {"hosts": 3}, "finetune": {"policies": ["random"], "epochs": 5}}
    with pytest.raises(ScenarioError, match="elimination needs N > T > 1"):
        parse(document, source="x")
