"""The figures of the network benchmark are what its rows say, no better."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.network_accuracy import classic, detection, figures, plan


def row(
    kind: str, *, phase: str = "idle", network: str = "n1", valid: bool = True, **values: Any
) -> dict[str, Any]:
    return {"kind": kind, "part": "hosts12", "network": network, "phase": phase, "valid": valid, **values}


def delays(*errors_ms: float, truth_s: float = 0.1, **where: Any) -> dict[str, Any]:
    samples = [
        {"truth_s": truth_s, "measured_s": truth_s + error / 1e3, "classic_s": None} for error in errors_ms
    ]
    return row("path_delay", samples=samples, **where)


def loss(low: float, value: float, high: float, *, pps: float = 200.0, phase: str = "idle") -> dict[str, Any]:
    measured = {"value": value, "low": low, "high": high}
    return row("loss", phase=phase, truth_ratio=0.01, traffic_pps=pps, after_s=30.0, measured=measured)


def test_one_error_in_ten_is_in_the_95th_percentile() -> None:
    found = figures.compute([delays(*[1.0] * 18, 9.0, 9.0)])["idle"]
    assert found["delay_error_p95_ms"] == pytest.approx(9.0)
    assert found["delay_error_p50_ms"] == pytest.approx(1.0)
    assert found["delay_error_p95_rel"] == pytest.approx(0.09)


def test_the_allowed_delay_error_is_the_greater_of_the_floor_and_the_share() -> None:
    far = figures.compute([delays(3.0, truth_s=0.1)])["idle"]
    near = figures.compute([delays(1.0, truth_s=0.01)])["idle"]
    assert far["delay_error_over_allowed_p95"] == pytest.approx(1.0)
    assert near["delay_error_over_allowed_p95"] == pytest.approx(1.0)


def test_a_late_emulation_is_counted_and_its_rows_are_left_out() -> None:
    rows = [delays(1.0), delays(50.0, network="n2", valid=False)]
    found = figures.compute(rows)["idle"]
    assert found["delay_error_p95_ms"] == pytest.approx(1.0)
    assert (found["networks"], found["invalid_networks"]) == (2, 1)


def test_what_was_not_known_is_told_and_not_taken_for_right() -> None:
    sample = {"truth_s": 0.1, "measured_s": None, "classic_s": None}
    found = figures.compute([row("path_delay", samples=[sample])])["idle"]
    assert found["delay_error_p95_ms"] is None
    assert found["delay_unknown_ratio"] == 1.0
    assert not figures.targets({"idle": found})[0].met


def test_coverage_is_the_share_of_intervals_that_hold_the_truth() -> None:
    rows = [
        loss(0.005, 0.008, 0.012),
        loss(0.011, 0.02, 0.03),
        loss(0.0, 0.004, 0.01),
        loss(0.0, 0.001, 0.009),
    ]
    found = figures.compute(rows)["idle"]
    assert found["loss_interval_coverage"] == 0.5
    assert found["loss_intervals"] == 4


def test_loaded_loss_is_judged_on_paths_with_enough_traffic_only() -> None:
    rows = [loss(0, 0.012, 0.1, phase="loaded"), loss(0, 0.5, 0.9, pps=0.0, phase="loaded")]
    assert figures.compute(rows)["loaded"]["loss_error_p95_pp"] == pytest.approx(0.2)


def step(value_s: float | None, *, counts: bool = True, phase: str = "idle") -> dict[str, Any]:
    return row("detection", phase=phase, metric="delay", value_s=value_s, event_s=None, counts=counts)


def test_a_step_that_never_showed_is_not_forgotten() -> None:
    seen = figures.compute([step(1.0)] * 9)["detection"]
    missed = figures.compute([*[step(1.0)] * 9, step(None)])["detection"]
    assert seen["detection_p95_s"] == 1.0
    assert missed["detection_p95_s"] is None
    assert (missed["delay"]["seen"], missed["delay"]["steps"]) == (9, 10)


def test_a_step_that_physics_forbids_does_not_count() -> None:
    assert figures.compute([step(1.0), step(None, counts=False)])["detection"]["detection_p95_s"] == 1.0


def test_every_group_has_the_keys_that_were_agreed() -> None:
    assert set(figures.KEYS) <= set(figures.compute([delays(1.0)])["idle"])


def test_the_counting_limit_is_that_of_a_binomial_count() -> None:
    found = figures.compute([loss(0, 0.01, 0.1, phase="loaded")])["loaded"]
    assert found["loss_counting_limit_pp"] == pytest.approx(0.2518, rel=1e-3)


def test_telling_two_percent_loss_from_one_takes_thousands_of_packets() -> None:
    assert 1500 < detection.packets_needed(0.01, 0.02) < 2500
    assert detection.packets_needed(0.05, 0.10) < 450


def test_the_classic_bandwidth_sums_both_directions_against_the_ports_speed() -> None:
    before = classic.PortReading(up_s=10.0, tx_bytes=0, rx_bytes=0)
    after = classic.PortReading(up_s=12.0, tx_bytes=1_000_000, rx_bytes=500_000)
    speed = classic.port_speed_bps(before, after)
    assert speed == 6e6
    assert classic.free_bps(10e9, speed) == 10e9 - 6e6
    assert classic.port_speed_bps(after, after) is None


def test_the_classic_delay_takes_half_of_both_echoes_off() -> None:
    assert classic.link_delay_s(0.012, 0.002, 0.004) == pytest.approx(0.009)
    assert classic.link_delay_s(0.001, 0.002, 0.004) == 0.0


def test_two_thirds_of_the_hosts_exchange_enough_numbered_packets_within_their_links() -> None:
    hosts = [f"h{number}" for number in range(1, 13)]
    rates = {host: 2e6 * number for number, host in enumerate(hosts, start=1)}
    flows = plan.background(hosts, rates, seed=1)
    udp = [flow for flow in flows if flow.kind == "udp"]
    assert len(udp) == 16
    for flow in udp:
        host = flow.dst if flow.src == "orch" else flow.src
        assert flow.pps >= plan.LEAST_PPS
        assert flow.frame_bps is not None
        assert flow.frame_bps <= 0.61 * rates[host]
    assert plan.background(hosts, rates, seed=1) == flows
    assert plan.background(hosts, rates, seed=2) != flows
