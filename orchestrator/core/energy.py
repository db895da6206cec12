"""Joules that a job costs each node: power in each state of the device times the time spent in it.

A node of a job computes, transfers (model, data and updates, either way) or waits. The powers come from the
device profile; the defaults are round figures for a small edge board with a radio, not a measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.core.ranges import check_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerProfile:
    """What a node's device draws, all of it: computing, transferring, idle.

    The defaults are round figures, not a measurement.
    """

    compute_w: float = 10.0
    transfer_w: float = 4.0
    idle_w: float = 2.0

    def __post_init__(self) -> None:
        check_ranges("power profile", self, compute_w=(0, 1e6), transfer_w=(0, 1e6), idle_w=(0, 1e6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Joules by what they were spent on."""

    compute_j: float = 0.0
    transfer_j: float = 0.0
    idle_j: float = 0.0
    total_j: float = 0.0


def energy(profile: PowerProfile, *, compute_s: float, transfer_s: float, job_s: float) -> Energy:
    """Account for a node that was part of a job for `job_s`: what it did not compute or transfer it idled."""
    idle_s = max(0.0, job_s - compute_s - transfer_s)
    parts = (profile.compute_w * compute_s, profile.transfer_w * transfer_s, profile.idle_w * idle_s)
    return Energy(compute_j=parts[0], transfer_j=parts[1], idle_j=parts[2], total_j=sum(parts))


def total(items: Iterable[Energy]) -> Energy:
    """Add up."""
    found = tuple(items)
    return Energy(
        compute_j=sum(item.compute_j for item in found),
        transfer_j=sum(item.transfer_j for item in found),
        idle_j=sum(item.idle_j for item in found),
        total_j=sum(item.total_j for item in found),
    )
