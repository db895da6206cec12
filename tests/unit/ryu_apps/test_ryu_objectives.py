"""Which way is best by an objective, why, and when a flow moves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryu_apps.flows import back
from ryu_apps.objectives import (
    DWELL_S,
    HOLD_S,
    Hops,
    Judged,
    Objective,
    Patience,
    candidates,
    judge,
    why_chosen,
    why_not,
)
from ryu_apps.paths import Hop, LinkValues
from ryu_apps.stats import Measurement, unknown

DELAY = Objective(weights={"delay": 1.0})
BANDWIDTH = Objective(weights={"available_bandwidth": 1.0})
LOSS = Objective(weights={"loss": 1.0})

Values = tuple[float | None, float | None, float | None]


def part(value: float | None, unit: str) -> Measurement:
    if value is None:
        return unknown("not measured", source="test", unit=unit)
    return Measurement(value=value, source="test", unit=unit)


def link(name: str, values: Values) -> LinkValues:
    delay_s, loss, available_bps = values
    seconds, rate = part(delay_s, "s"), part(available_bps, "bit/s")
    return LinkValues(
        id=name,
        delay_s=seconds,
        jitter_s=seconds,
        loss_ratio=part(loss, "ratio"),
        capacity_bps=rate,
        used_bps=rate,
        available_bps=rate,
        available_to_own_bps=rate,
    )


def mesh(edges: Mapping[tuple[int, int], Values]) -> dict[Hop, LinkValues]:
    """Return links with the same values in both directions."""
    links = {}
    for (a, b), values in edges.items():
        hop = Hop(src=a, src_port=b, dst=b, dst_port=a)
        for each in (hop, back(hop)):
            links[each] = link(f"{each.src}-{each.dst}", values)
    return links


def over(hops: Hops) -> list[int]:
    return [hops[0].src, *(hop.dst for hop in hops)]


DIAMOND = {
    (1, 2): (0.005, 0.02, 5e6),
    (2, 4): (0.005, 0.00, 9e6),
    (1, 3): (0.020, 0.00, 8e6),
    (3, 4): (0.020, 0.00, 8e6),
    (1, 4): (0.100, 0.00, 2e6),
}


def ranked(objective: Objective, edges: Mapping[tuple[int, int], Values]) -> list[Judged]:
    links = mesh(edges)
    return judge(objective, candidates(links, 1, 4, objective), links, [])


@pytest.mark.parametrize(
    ("objective", "best"),
    [
        (DELAY, [1, 2, 4]),
        (BANDWIDTH, [1, 3, 4]),
        (LOSS, [1, 3, 4]),
        (Objective(weights={"delay": 0.9, "loss": 0.1}), [1, 2, 4]),
        (Objective(weights={"delay": 0.1, "loss": 0.9}), [1, 3, 4]),
    ],
)
def test_each_objective_has_its_own_best_way(objective: Objective, best: list[int]) -> None:
    judged = ranked(objective, DIAMOND)
    assert over(judged[0].hops) == best
    assert [way.score for way in judged] == sorted(way.score for way in judged if way.score is not None)


def test_an_unknown_value_is_named_and_never_taken_for_zero() -> None:
    judged = ranked(LOSS, {**DIAMOND, (1, 3): (0.020, None, 8e6)})
    assert over(judged[0].hops) == [1, 4]
    last = next(way for way in judged if over(way.hops) == [1, 3, 4])
    assert last.score is None
    assert why_not(LOSS, last, judged[0]) == "cannot be judged: loss of link 1-3: not measured"


def test_with_nothing_known_the_way_of_least_delay_is_taken_and_the_reason_given() -> None:
    judged = ranked(LOSS, {ends: (values[0], None, None) for ends, values in DIAMOND.items()})
    assert over(judged[0].hops) == [1, 2, 4]
    assert "no way can be judged by loss: loss of link 1-2" in why_chosen(LOSS, judged, judged[0].hops)


def test_what_is_unknown_at_the_hosts_is_left_out_since_it_makes_no_difference() -> None:
    links = mesh(DIAMOND)
    ways = candidates(links, 1, 4, BANDWIDTH)
    known, missing = link("a", (0.01, 0.0, 6e6)), link("b", (0.01, 0.0, None))
    judged = judge(BANDWIDTH, ways, links, [known, missing])
    assert judged[0].values == {"available_bandwidth": 6e6}


def test_a_better_way_is_explained_by_both_values() -> None:
    judged = ranked(DELAY, DIAMOND)
    assert why_chosen(DELAY, judged, judged[0].hops).endswith("alternatives for delay: delay 10.0 ms")
    assert why_not(DELAY, judged[1], judged[0]) == "worse: delay 40.0 ms against delay 10.0 ms"


def test_parallel_links_are_different_ways() -> None:
    links = {
        Hop(src=1, src_port=port, dst=2, dst_port=port): link(f"1.{port}", (0.01 * port, 0.0, 1e6))
        for port in (1, 2, 3)
    }
    assert [hops[0].src_port for hops in candidates(links, 1, 2, DELAY)] == [1, 2, 3]


def test_there_is_no_way_to_a_switch_without_links() -> None:
    assert candidates(mesh(DIAMOND), 1, 9, DELAY) == []
    assert candidates(mesh({**DIAMOND, (8, 9): (0.1, 0.0, 1e6)}), 1, 9, BANDWIDTH) == []
    assert candidates({}, 5, 5, LOSS) == [()]


def simple_ways(links: Mapping[Hop, LinkValues], src: int, dst: int) -> list[Hops]:
    """Return every loop-free way, by brute force."""
    found: list[Hops] = []
    todo: list[Hops] = [()]
    while todo:
        way = todo.pop()
        here = way[-1].dst if way else src
        if here == dst:
            found.append(way)
            continue
        passed = {src, *(hop.dst for hop in way)}
        todo += [(*way, hop) for hop in links if hop.src == here and hop.dst not in passed]
    return found


MESHES = st.dictionaries(
    st.sampled_from(list(itertools.combinations(range(1, 7), 2))),
    st.tuples(st.floats(0.001, 0.2), st.floats(0, 0.5), st.floats(1e5, 1e9)),
    min_size=1,
)


@settings(deadline=None)
@given(edges=MESHES, objective=st.sampled_from([DELAY, BANDWIDTH, LOSS]))
def test_by_one_value_no_way_at_all_is_better_than_the_best_candidate(
    edges: dict[tuple[int, int], Values], objective: Objective
) -> None:
    links = mesh(edges)
    every = judge(objective, simple_ways(links, 1, 2), links, [])
    some = judge(objective, candidates(links, 1, 2, objective), links, [])
    assert bool(every) == bool(some)
    if every:
        (name,) = objective.weights
        assert some[0].values[name] == pytest.approx(every[0].values[name], rel=1e-4, abs=1e-5)


# --- patience


def two(delay_a: float, delay_b: float) -> list[Judged]:
    links = mesh({(1, 2): (delay_a / 2, 0.0, 1e6), (2, 4): (delay_a / 2, 0.0, 1e6)}) | mesh(
        {(1, 3): (delay_b / 2, 0.0, 1e6), (3, 4): (delay_b / 2, 0.0, 1e6)}
    )
    return judge(DELAY, candidates(links, 1, 4, DELAY), links, [])


def test_a_flow_moves_once_another_way_was_clearly_better_for_long_enough() -> None:
    patience = Patience()
    here = patience.choose(0.0, DELAY, two(0.010, 0.030), None)
    assert over(here) == [1, 2, 4]
    times = [1.0 + 0.5 * step for step in range(20)]
    way = [over(patience.choose(now, DELAY, two(0.060, 0.030), here)) for now in times]
    first = way.index([1, 3, 4])
    assert times[first] - times[0] == HOLD_S


def test_a_little_better_or_only_for_a_moment_is_not_enough() -> None:
    patience = Patience()
    here = patience.choose(0.0, DELAY, two(0.030, 0.031), None)
    for step in range(100):
        delay_s = 0.010 if step % 4 == 0 else 0.029
        assert patience.choose(float(step), DELAY, two(0.030, delay_s), here) == here


def test_ways_that_take_turns_make_a_flow_move_less_and_less() -> None:
    patience = Patience()
    here = patience.choose(0.0, DELAY, two(0.010, 0.030), None)
    moved = []
    for step in range(600):
        swapped = (step // 15) % 2 == 0
        chosen = patience.choose(
            float(step), DELAY, two(0.060, 0.010) if swapped else two(0.010, 0.060), here
        )
        if chosen != here:
            moved.append(step)
        here = chosen
    assert len(moved) <= 7
    gaps = [after - before for before, after in itertools.pairwise(moved)]
    assert min(gaps) >= DWELL_S


def test_a_flow_leaves_a_way_that_is_gone_at_once() -> None:
    patience = Patience()
    gone = (Hop(src=1, src_port=9, dst=4, dst_port=9),)
    assert over(patience.choose(0.0, DELAY, two(0.010, 0.030), gone)) == [1, 2, 4]


@pytest.mark.parametrize("weights", [{}, {"speed": 1.0}, {"delay": 0.5}, {"delay": 2.0, "loss": -1.0}])
def test_weights_that_make_no_sense_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"weigh"):
        Objective(weights=weights)
