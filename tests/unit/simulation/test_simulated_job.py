"""A whole job on the virtual clock: times by hand, the same result each time, and what faults do."""

from __future__ import annotations

from math import inf

import pytest
from simulated_world import RATES_BPS, make_world

from orchestrator.simulation import Fault, SimulationError
from orchestrator.simulation.tcp import beginning, initial_window_bits

FRAME_BITS = 8 * 1514


def lost_s(segments: int, rate_bps: float) -> float:
    return beginning(
        bits=segments * FRAME_BITS, rate_bps=rate_bps, rtt_s=0.02, window_bits=initial_window_bits()
    ).lost_s


def test_a_job_of_one_epoch_takes_the_slowest_nodes_load_training_and_update(simulated):
    result = simulated(epochs=1)
    model_s, data_s = 1000 * FRAME_BITS / 1e6, 100 * FRAME_BITS / 1e6
    train_s = 6 * 100_000 * 1000 / 1e9
    begins_s = 2 * lost_s(1000, 1e6)
    load_s = model_s + 0.02 + data_s + 0.02
    round_s = 0.01 + train_s + 0.01 + model_s
    assert result.summary.completion_s == pytest.approx(load_s + round_s + begins_s, rel=1e-9)


def test_flows_that_want_more_than_the_shared_link_has_are_slowed_down(simulated):
    wide = simulated(epochs=1, world=make_world(shared_bps=1e9))
    narrow = simulated(epochs=1, world=make_world(shared_bps=2e6))
    assert narrow.summary.completion_s > 1.5 * wide.summary.completion_s


@pytest.mark.parametrize("policy", ["all", "eliminate", "random"])
def test_the_same_seed_gives_the_same_result_to_the_byte(simulated, policy):
    first, second = (simulated(policy=policy, world=make_world(loss_ratio=0.01)) for _ in range(2))
    assert simulated.text(first) == simulated.text(second)


def test_another_seed_measures_something_else(simulated):
    first, second = (simulated(policy="eliminate", seed=seed) for seed in (1, 2))
    assert simulated.text(first) != simulated.text(second)


def test_elimination_drops_the_slowest_and_saves_time(simulated):
    everybody, chosen = simulated(policy="all"), simulated(policy="eliminate")
    assert chosen.epochs[0].eliminated == ("h4",)
    assert chosen.summary.completion_s < everybody.summary.completion_s
    assert set(chosen.summary.settled) == set(RATES_BPS)


def test_cubic_is_slower_than_bbr_where_packets_are_lost(simulated):
    bbr = simulated(world=make_world(loss_ratio=0.05))
    cubic = simulated(world=make_world(loss_ratio=0.05, congestion_control="cubic"))
    assert cubic.epochs[1].node_round_s["h1"] > 1.2 * bbr.epochs[1].node_round_s["h1"]


def test_a_node_lost_in_mid_round_costs_its_contribution_only(simulated):
    whole = simulated()
    at_s = whole.epochs[0].seconds + 0.5 * whole.epochs[1].seconds
    result = simulated(faults=[Fault(at_s=at_s, node="h4", kind="lost")])
    assert result.epochs[1].contributed == ("h1", "h2", "h3")
    assert "lost" in result.epochs[1].failed["h4"]
    assert result.summary.completion_s < whole.summary.completion_s
    assert result.summary.unsettled == {"h4": "lost"}


def test_a_node_that_comes_back_is_loaded_again_and_takes_part(simulated):
    faults = [Fault(at_s=1.0, node="h1", kind="lost"), Fault(at_s=6.0, node="h1", kind="back")]
    result = simulated(faults=faults)
    assert "h1" not in result.epochs[0].contributed
    assert "h1" in result.epochs[1].contributed
    assert set(result.summary.settled) == set(RATES_BPS)


def test_a_loss_that_is_noticed_late_holds_the_round_up(simulated):
    at_once = simulated(faults=[Fault(at_s=30.0, node="h4", kind="lost")])
    late = simulated(faults=[Fault(at_s=30.0, node="h4", kind="lost", noticed_s=60.0)])
    assert late.summary.completion_s > at_once.summary.completion_s + 30


def test_a_node_that_hangs_is_given_up_after_the_timeout(simulated):
    result = simulated(
        faults=[Fault(at_s=2.0, node="h3", kind="hung")],
        spec={"load_timeout_s": 100.0, "round_timeout_s": 100.0, "sync_timeout_s": 100.0},
    )
    assert "hung" in result.epochs[0].failed["h3"]
    assert result.epochs[0].seconds >= 100
    assert "h3" not in result.epochs[1].active


def test_an_update_that_is_garbage_is_refused(simulated):
    result = simulated(faults=[Fault(at_s=0.0, node="h2", kind="garbage")])
    assert "not finite" in result.epochs[0].failed["h2"]
    assert "h2" in result.epochs[1].contributed


def test_what_every_node_did_is_accounted(simulated):
    result = simulated(epochs=2)
    use = result.uses["h2"]
    assert use.compute_s == pytest.approx(2 * 0.6)
    assert use.sent_bytes == 2 * 1448 * 1000
    assert use.received_bytes == (3 * 1000 + 100) * 1448


def test_a_job_of_nodes_that_are_not_there_is_refused(simulated):
    with pytest.raises(SimulationError, match="h9"):
        simulated(spec={"nodes": ("h1", "h2", "h3", "h9")})


def test_a_job_that_waits_for_what_will_never_come_says_so(simulated):
    faults = [Fault(at_s=5.0, node="h4", kind="hung")]
    with pytest.raises(SimulationError, match="timeout"):
        simulated(faults=faults, spec={"round_timeout_s": inf, "load_timeout_s": inf})
