"""What the demo claims follows from its rows."""

import pytest
from demo_sample import result

from demo import job, serving, tuning


@pytest.mark.parametrize(
    ("tokens", "reference", "margins", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], [1.0, 1.0, 1.0], {"mismatches": 0, "ties": 0}),
        ([1, 9, 3], [1, 2, 3], [1.0, 0.5, 1.0], {"mismatches": 1, "ties": 0}),
        ([1, 9, 8], [1, 2, 3], [1.0, 1e-6, 1.0], {"mismatches": 0, "ties": 1}),
        ([1, 9, 8], [1, 2, 3], [1.0, 0.5, 1e-6], {"mismatches": 2, "ties": 0}),
        ([1, 2], [1, 2, 3], [1.0, 1.0, 1.0], {"mismatches": 1, "ties": 0}),
    ],
    ids=[
        "equal",
        "one differs",
        "a tie ends the comparison",
        "a tie after a difference excuses nothing",
        "short",
    ],
)
def test_tokens_are_compared_with_the_unsplit_model(
    tokens: list[int], reference: list[int], margins: list[float], expected: dict[str, int]
) -> None:
    assert serving.compare(tokens, reference, margins) == expected


def test_the_reduction_is_that_of_the_two_completion_times() -> None:
    runs = result()["finetune"]
    runs["all"]["completion_s"], runs["eliminate"]["completion_s"] = 100.0, 40.0
    runs["all"]["final_loss"], runs["eliminate"]["final_loss"] = 2.0, 2.02
    assert tuning.comparison(runs) == pytest.approx(
        {"completion_reduction_ratio": 0.6, "loss_difference_ratio": 0.01}
    )


def test_one_policy_alone_is_not_compared() -> None:
    assert tuning.comparison({"all": result()["finetune"]["all"]}) is None


def test_a_target_is_missed_when_one_path_is_off() -> None:
    sample = result()
    sample["measured"][1]["error"]["delay"] = 0.21
    met = {target.name: target.met for target in job.targets(sample, seconds=60.0)}
    assert not met["delay_error_max"]
    assert met["bandwidth_error_max"]
    assert met["minutes"]
    assert met["links_kept_up"]
    assert met["device_lateness_p90"]


def test_a_route_that_did_not_change_misses_its_target() -> None:
    sample = result()
    del sample["inference"]["placements"][1]
    met = {target.name: target.met for target in job.targets(sample, seconds=60.0)}
    assert not met["route_changed"]


def test_device_lateness_is_a_share_of_the_time_that_the_device_would_have_taken() -> None:
    lateness = tuning.device_lateness(result()["finetune"])
    assert lateness["max"] == pytest.approx(1.0 / 4.0)
    assert lateness["p50"] == 0.0
    assert tuning.device_lateness({}) == {"p50": None, "p90": None, "max": None}
