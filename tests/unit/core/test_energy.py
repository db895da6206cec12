"""Joules are watts times seconds, of each state of the device."""

from __future__ import annotations

import pytest

from orchestrator.core.energy import PowerProfile, energy, total
from orchestrator.core.errors import InvalidValue

PROFILE = PowerProfile(compute_w=10.0, transfer_w=4.0, idle_w=2.0)


def test_a_node_idles_whenever_it_does_not_compute_or_transfer() -> None:
    spent = energy(PROFILE, compute_s=3.0, transfer_s=5.0, job_s=10.0)
    assert (spent.compute_j, spent.transfer_j, spent.idle_j, spent.total_j) == (30.0, 20.0, 4.0, 54.0)


def test_transfers_that_overlap_do_not_make_idling_negative() -> None:
    assert energy(PROFILE, compute_s=6.0, transfer_s=6.0, job_s=10.0).idle_j == 0.0


def test_all_nodes_are_added_up() -> None:
    one = energy(PROFILE, compute_s=1.0, transfer_s=1.0, job_s=2.0)
    assert total([one, one]).total_j == 2 * one.total_j
    assert total([]).total_j == 0.0


@pytest.mark.parametrize("watts", [-1.0, float("nan"), float("inf")])
def test_impossible_powers_are_refused(watts: float) -> None:
    with pytest.raises(InvalidValue, match="idle_w"):
        PowerProfile(idle_w=watts)
