"""What physics allows over a link, and how much of a link a transfer used."""

from __future__ import annotations

import pytest

from benchmarks.split_overhead import limits


def test_a_token_computes_and_crosses_the_link_twice() -> None:
    least_s = limits.token_s(compute_s=0.004, delay_s=0.05, round_bytes=5000, rate_bps=10e6, burst_bytes=0)
    assert least_s == pytest.approx(0.004 + 0.1 + 0.004)


def test_what_the_bucket_lets_pass_unshaped_takes_no_time_and_never_less_than_none() -> None:
    values = {"compute_s": 0.004, "delay_s": 0.0, "rate_bps": 10e6}
    assert limits.token_s(round_bytes=5000, burst_bytes=3028, **values) == pytest.approx(0.004)
    assert limits.token_s(round_bytes=10_000, burst_bytes=2500, **values) == pytest.approx(0.008)


@pytest.mark.parametrize(("rate_bps", "least_s"), [(10e6, 1.28 + 0.02), (1e9, 0.23 + 0.02)])
def test_a_prompt_goes_at_the_pace_of_the_slowest_of_stage_and_link(rate_bps: float, least_s: float) -> None:
    found = limits.prompt_s(compute_s=0.46, delay_s=0.01, sent_bytes=1_600_000, rate_bps=rate_bps)
    assert found == pytest.approx(least_s)


def test_a_transfer_is_timed_from_its_beginning_to_its_payloads_end_not_over_what_follows() -> None:
    idle = [(0.1 * step, 1000) for step in range(5)]
    moving = [(0.5 + 0.01 * step, 1000 + 12_500 * step) for step in range(1, 101)]
    answers = [(2.0 + step, 1_251_000 + 100 * step) for step in range(50)]
    found = limits.transfer_bps([*idle, *moving, *answers], 1_200_000)
    assert found == pytest.approx(10e6, rel=0.02)


def test_a_transfer_that_was_not_whole_has_no_rate() -> None:
    assert limits.transfer_bps([], 10) is None
    assert limits.transfer_bps([(0.0, 5), (1.0, 9)], 10) is None


def row(arm: str, *, kept_up: bool = True, **values: float) -> limits.Row:
    return {"part": limits.PART, "arm": arm, "emulation_kept_up": kept_up, **values}


def test_targets_stand_on_the_cells_whose_emulation_kept_up_and_say_how_many_did_not() -> None:
    rows = [
        row("decode", median_over_limit=1.05),
        row("decode", median_over_limit=1.2),
        row("decode", median_over_limit=9.0, kept_up=False),
        row("prompt rows", use_of_rate=0.9),
    ]
    found = {target.name: target.value for target in limits.targets(rows)}
    assert found == {
        "networks_worst_token_over_limit": 1.2,
        "networks_tokens_within_limit": 0.5,
        "networks_worst_use_of_link": 0.9,
        "networks_uses_within_limit": 1.0,
        "networks_rows_emulated_late": 1,
    }


def test_without_rows_nothing_is_met() -> None:
    assert not any(target.met for target in limits.targets([]))
