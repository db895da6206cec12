"""Max-min fairness: its laws for any network, and cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.simulation.fairness import max_min_rates


@st.composite
def networks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw paths [F, H], capacities [L + 1] with the filler last, and bounds [F]."""
    links = draw(st.integers(1, 6))
    capacities = draw(st.lists(st.floats(0.1, 1e9), min_size=links, max_size=links))
    hops = draw(st.integers(1, 3))
    flows = draw(st.integers(1, 12))
    paths = np.full((flows, hops), links)
    for flow in range(flows):
        used = draw(st.lists(st.integers(0, links - 1), max_size=min(hops, links), unique=True))
        paths[flow, : len(used)] = used
    bounds = draw(st.lists(st.floats(0.01, 1e9), min_size=flows, max_size=flows))
    return paths, np.array([*capacities, np.inf]), np.array(bounds)


@settings(max_examples=300, deadline=None)
@given(networks())
def test_no_link_carries_more_than_it_can(network):
    paths, capacities, bounds = network
    rates = max_min_rates(paths, capacities, bounds)
    load = np.bincount(paths.ravel(), weights=np.repeat(rates, paths.shape[1]), minlength=len(capacities))
    assert (load <= capacities * (1 + 1e-9)).all()


@settings(max_examples=300, deadline=None)
@given(networks())
def test_every_flow_has_its_bound_or_a_full_link_on_which_nobody_gets_more(network):
    paths, capacities, bounds = network
    rates = max_min_rates(paths, capacities, bounds)
    load = np.bincount(paths.ravel(), weights=np.repeat(rates, paths.shape[1]), minlength=len(capacities))
    for flow, rate in enumerate(rates):
        assert rate > 0
        if rate >= bounds[flow] * (1 - 1e-9):
            assert rate <= bounds[flow] * (1 + 1e-9)
            continue
        full = [link for link in paths[flow] if load[link] >= capacities[link] * (1 - 1e-9)]
        greatest = [max(rates[(paths == link).any(axis=1)]) for link in full]
        assert any(rate >= most * (1 - 1e-9) for most in greatest)


@settings(max_examples=100, deadline=None)
@given(networks(), st.randoms(use_true_random=False))
def test_the_order_of_the_flows_does_not_matter(network, random):
    paths, capacities, bounds = network
    order = list(range(len(bounds)))
    random.shuffle(order)
    shuffled = max_min_rates(paths[order], capacities, bounds[order])
    assert shuffled == pytest.approx(max_min_rates(paths, capacities, bounds)[order], rel=1e-9)


def test_the_textbook_chain_is_shared_as_in_the_textbook():
    # Link 0 carries flows a, b and c, link 1 carries c and d: a third of link 0 each, and d the rest.
    paths = np.array([[0, 2], [0, 2], [0, 1], [1, 2]])
    rates = max_min_rates(paths, np.array([3.0, 10.0, np.inf]), np.full(4, 100.0))
    assert rates.tolist() == pytest.approx([1.0, 1.0, 1.0, 9.0])


def test_what_a_bounded_flow_leaves_goes_to_the_others():
    rates = max_min_rates(np.array([[0], [0], [0]]), np.array([9.0, np.inf]), np.array([1.0, 100.0, 100.0]))
    assert rates.tolist() == pytest.approx([1.0, 4.0, 4.0])
