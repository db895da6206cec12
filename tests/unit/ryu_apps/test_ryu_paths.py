"""Paths over switches, and the values of paths."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.paths import Hop, LinkValues, combine, least_delay_path, path_cost_s
from ryu_apps.stats import Measurement, unknown

PORTS = itertools.count(1)


def both(a: int, b: int, delay_s: float | None) -> dict[Hop, float | None]:
    one = Hop(src=a, src_port=b, dst=b, dst_port=a)
    return {one: delay_s, Hop(src=b, src_port=a, dst=a, dst_port=b): delay_s}


def switches(hops: tuple[Hop, ...]) -> list[int]:
    return [hops[0].src, *(hop.dst for hop in hops)]


def test_the_path_of_least_delay_wins_over_the_shorter_one() -> None:
    net = {**both(1, 2, 0.050), **both(1, 3, 0.010), **both(3, 2, 0.010)}
    found = least_delay_path(net, 1, 2)
    assert found is not None
    assert switches(found.hops) == [1, 3, 2]
    assert found.cost_s == pytest.approx(0.020)


def test_equal_paths_are_chosen_the_same_way_whatever_the_noise() -> None:
    for noise_s in (-0.0003, 0.0, 0.0003):
        net = {
            **both(1, 8, 0.004 + noise_s),
            **both(8, 2, 0.004),
            **both(1, 9, 0.004),
            **both(9, 2, 0.004 - noise_s),
        }
        found = least_delay_path(net, 1, 2)
        assert found is not None
        assert switches(found.hops) == [1, 8, 2]


def test_links_without_a_measurement_count_as_hops() -> None:
    net = {**both(1, 2, None), **both(1, 3, None), **both(3, 2, None)}
    found = least_delay_path(net, 1, 2)
    assert found is not None
    assert switches(found.hops) == [1, 2]


def test_a_switch_reaches_itself_without_a_hop_and_an_island_not_at_all() -> None:
    net = both(1, 2, 0.001)
    here = least_delay_path(net, 1, 1)
    assert here is not None
    assert here.hops == ()
    assert least_delay_path(net, 1, 7) is None


def test_a_path_over_a_lost_link_costs_infinitely_much() -> None:
    net = both(1, 2, 0.004)
    hop = next(iter(net))
    assert path_cost_s([hop], net) == pytest.approx(0.004)
    assert path_cost_s([hop], {}) == float("inf")


edges = st.dictionaries(
    st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda ends: ends[0] != ends[1]),
    st.integers(1, 50),
    max_size=20,
)


@given(edges)
def test_no_path_is_shorter_than_the_found_one_and_none_has_a_loop(edges: dict[tuple[int, int], int]) -> None:
    hops: dict[Hop, float | None] = {
        Hop(src=a, src_port=b, dst=b, dst_port=a): delay / 1000 for (a, b), delay in edges.items()
    }
    found = least_delay_path(hops, 1, 6)
    best = _brute_force(edges, 1, 6)
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert found.cost_s == pytest.approx(best / 1000)
        visited = switches(found.hops)
        assert len(set(visited)) == len(visited)
        assert all(first.dst == second.src for first, second in itertools.pairwise(found.hops))


def _brute_force(edges: dict[tuple[int, int], int], src: int, dst: int) -> int | None:
    costs = []
    for count in range(5):
        for middle in itertools.permutations([n for n in range(1, 7) if n not in (src, dst)], count):
            way = [src, *middle, dst]
            if all(pair in edges for pair in itertools.pairwise(way)):
                costs.append(sum(edges[pair] for pair in itertools.pairwise(way)))
    return min(costs, default=None)


def value(number: float, unit: str, *, samples: int = 10, age_s: float = 1.0) -> Measurement:
    return Measurement(value=number, raw=number, samples=samples, age_s=age_s, source="probe", unit=unit)


def link(
    name: str, *, delay_s: float, loss: float, capacity: float, used: float, samples: int = 10
) -> LinkValues:
    return LinkValues(
        id=name,
        delay_s=value(delay_s, "s", samples=samples, age_s=samples / 10),
        jitter_s=value(0.001, "s"),
        loss_ratio=value(loss, "ratio"),
        capacity_bps=value(capacity, "bit/s"),
        used_bps=value(used, "bit/s"),
        available_bps=value(capacity - used, "bit/s"),
        available_to_own_bps=value(capacity - used / 2, "bit/s"),
    )


def test_a_path_adds_delays_and_takes_the_bottleneck() -> None:
    path = combine(
        [
            link("a", delay_s=0.004, loss=0.1, capacity=1e9, used=995e6, samples=4),
            link("b", delay_s=0.020, loss=0.2, capacity=20e6, used=1e6, samples=40),
        ],
        no_path="",
    )
    assert path.delay_s.value == pytest.approx(0.024)
    assert path.loss_ratio.value == pytest.approx(1 - 0.9 * 0.8)
    assert path.capacity_bps.value == 20e6
    assert path.available_bps.value == 5e6
    assert path.available_to_own_bps.value == 19.5e6
    assert path.used_bps.value == 995e6
    assert (path.delay_s.samples, path.delay_s.age_s) == (4, 4.0)
    assert path.delay_s.source == "derived"


def test_an_unknown_link_makes_the_path_unknown_and_is_named() -> None:
    known = link("a", delay_s=0.004, loss=0.1, capacity=1e9, used=0.0)
    blind = LinkValues(
        id="b",
        delay_s=known.delay_s,
        jitter_s=known.jitter_s,
        loss_ratio=known.loss_ratio,
        capacity_bps=unknown("no train yet", source="packet_train", unit="bit/s"),
        used_bps=known.used_bps,
        available_bps=unknown("capacity is unknown: no train yet", source="derived", unit="bit/s"),
        available_to_own_bps=unknown("capacity is unknown: no train yet", source="derived", unit="bit/s"),
    )
    path = combine([known, blind], no_path="")
    assert path.delay_s.value == pytest.approx(0.008)
    assert path.capacity_bps.reason == "link b: no train yet"
    assert path.used_bps.reason == "link b: capacity is unknown: no train yet"


def test_without_a_way_everything_is_unknown_for_that_reason() -> None:
    path = combine([], no_path="no path leads there")
    assert {path.delay_s.reason, path.loss_ratio.reason, path.available_bps.reason} == {"no path leads there"}
