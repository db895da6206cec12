"""Flows over time, against times worked out by hand and against a plain reference for any traffic."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.simulation.fairness import max_min_rates
from orchestrator.simulation.flows import FlowNetwork


def ends(network: FlowNetwork) -> list[tuple[float, int]]:
    """Run a network on its own until nothing flows."""
    found = []
    while network.next_s < inf:
        now_s = network.next_s
        found += [(now_s, flow) for flow in network.advance(now_s)]
    return found


def test_a_flow_alone_runs_at_its_slowest_link():
    network = FlowNetwork([10.0, 2.0])
    flow = network.start([0, 1], bits=20.0, bound_bps=5.0, now_s=1.0)
    assert ends(network) == [(11.0, flow)]


def test_two_flows_share_a_link_and_the_longer_one_speeds_up_when_the_shorter_is_done():
    network = FlowNetwork([10.0])
    short = network.start([0], bits=10.0, bound_bps=inf, now_s=0.0)
    long = network.start([0], bits=30.0, bound_bps=inf, now_s=0.0)
    assert ends(network) == [(2.0, short), (pytest.approx(4.0), long)]


def test_a_flow_that_begins_later_slows_down_the_one_that_runs():
    network = FlowNetwork([10.0])
    first = network.start([0], bits=100.0, bound_bps=inf, now_s=0.0)
    second = network.start([0], bits=20.0, bound_bps=inf, now_s=4.0)
    assert ends(network) == [(pytest.approx(8.0), second), (pytest.approx(12.0), first)]


def test_flows_within_a_links_capacity_do_not_touch_each_other():
    network = FlowNetwork([10.0])
    slow = network.start([0], bits=40.0, bound_bps=4.0, now_s=0.0)
    fast = network.start([0], bits=12.0, bound_bps=6.0, now_s=0.0)
    assert ends(network) == [(2.0, fast), (10.0, slow)]


def test_a_stopped_flow_leaves_its_share_to_the_other():
    network = FlowNetwork([10.0])
    stopped = network.start([0], bits=100.0, bound_bps=inf, now_s=0.0)
    kept = network.start([0], bits=20.0, bound_bps=inf, now_s=0.0)
    network.advance(network.next_s)
    network.stop(stopped, now_s=2.0)
    assert ends(network) == [(pytest.approx(3.0), kept)]


def test_with_coalescing_all_is_carried_no_faster_than_the_link_and_not_much_later():
    exact, coarse = FlowNetwork([10.0]), FlowNetwork([10.0], coalesce_s=0.5)
    for network in (exact, coarse):
        for size in range(1, 20):
            network.start([0], bits=float(size), bound_bps=3.0, now_s=0.0)
    last_s = max(at_s for at_s, _ in ends(exact))
    found = ends(coarse)
    assert len(found) == 19
    assert last_s <= found[-1][0] <= last_s + 19 * 0.5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
            st.floats(1, 100),
            st.floats(0.5, 20),
            st.floats(0, 10),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_traffic_ends_when_a_plain_step_by_step_reference_says(traffic):
    capacities = [5.0, 8.0, 3.0, 20.0]
    network, due = FlowNetwork(capacities), sorted(traffic, key=lambda flow: flow[3])
    ended: list[float] = []
    while due or network.next_s < inf:
        if due and due[0][3] <= network.next_s:
            links, bits, bound, at_s = due.pop(0)
            network.start(links, bits=bits, bound_bps=bound, now_s=at_s)
        else:
            now_s = network.next_s
            ended += [now_s] * len(network.advance(now_s))
    assert sorted(ended) == pytest.approx(_reference(capacities, traffic), rel=1e-6)


def _reference(capacities: list[float], traffic: list) -> list[float]:
    """Share everything anew at each arrival and each end."""
    full = np.array([*capacities, inf])
    waiting = sorted(traffic, key=lambda flow: flow[3])
    now_s, running, ended = 0.0, [], []
    while waiting or running:
        rates = []
        if running:
            paths = np.array([[*links, *[4] * (3 - len(links))] for links, _, _ in running])
            rates = max_min_rates(paths, full, np.array([bound for _, _, bound in running])).tolist()
        next_end = min(
            (now_s + left / rate for (_, left, _), rate in zip(running, rates, strict=True)), default=inf
        )
        at_s = min(next_end, waiting[0][3] if waiting else inf)
        running = [
            (links, left - rate * (at_s - now_s), bound)
            for (links, left, bound), rate in zip(running, rates, strict=True)
        ]
        now_s = at_s
        ended += [now_s for _, left, _ in running if left <= 1e-9]
        running = [flow for flow in running if flow[1] > 1e-9]
        while waiting and waiting[0][3] <= now_s:
            links, bits, bound, _ = waiting.pop(0)
            running.append((links, bits, bound))
    return sorted(ended)
