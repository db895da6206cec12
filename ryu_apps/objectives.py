"""Rank the ways between two hosts by an objective, say why, and decide when a flow should move: pure.

An objective weighs delay, available bandwidth and loss. With one of them alone, ways are ranked by its value.
With several, each is normalised over the alternatives at hand, 0 for the best and 1 for the worst
(differences below a floor are noise and stay below 1), and the weighted sum decides: smaller is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx

from ryu_apps.paths import UNMEASURED_DELAY_S, Hop, LinkValues

Hops = tuple[Hop, ...]

MAX_ALTERNATIVES = 16
PATHS_PER_CRITERION = 8
"""So many ways of least delay, of least loss and of most bandwidth are compared."""
HOLD_S = 3.0
"""Another way must have been clearly better for so long."""
DWELL_S = 10.0
"""A flow stays so long after it moved, twice as long for each earlier move within `MEMORY_S`."""
MAX_DWELL_S = 320.0
MEMORY_S = 600.0
BETTER_SCORE = 0.1
"""By so much a weighted sum must be better."""
BETTER_SHARE = 0.2
"""By this share (and its term's floor) a single value must be better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One thing to optimise."""

    name: str
    metric: str
    unit: str
    floor: float
    """Differences smaller than this are noise."""
    higher_is_better: bool = False

    def shown(self, value: float) -> str:
        """Return a value for people."""
        if self.unit == "s":
            return f"{value * 1e3:.1f} ms"
        return f"{value / 1e6:.3g} Mbit/s" if self.unit == "bit/s" else f"{value:.2%}"


TERMS = {
    term.name: term
    for term in (
        Term(name="delay", metric="delay_s", unit="s", floor=0.002),
        Term(
            name="available_bandwidth",
            metric="available_bps",
            unit="bit/s",
            floor=1e5,
            higher_is_better=True,
        ),
        Term(name="loss", metric="loss_ratio", unit="ratio", floor=0.005),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Weights by the name of their term, positive, with the sum 1."""

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.weights or not self.weights.keys() <= TERMS.keys():
            raise ValueError(
                f"an objective weighs some of {', '.join(TERMS)}, not {', '.join(self.weights) or 'nothing'}"
            )
        for name, weight in self.weights.items():
            if not math.isfinite(weight) or weight <= 0:
                raise ValueError(f"the weight of {name} is {weight!r}; it is above 0")
        if abs(math.fsum(self.weights.values()) - 1) > 1e-6:
            raise ValueError(
                f"the weights are {dict(self.weights)}, their sum is {sum(self.weights.values()):g}; it is 1"
            )

    @property
    def terms(self) -> list[Term]:
        """Return what is weighed."""
        return [TERMS[name] for name in self.weights]

    @property
    def single(self) -> Term | None:
        """Return the term of an objective that has only one."""
        return self.terms[0] if len(self.weights) == 1 else None

    def __str__(self) -> str:
        if self.single is not None:
            return self.single.name
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One way under an objective; `score` is None exactly when `unknown` names what is not known."""

    hops: Hops
    values: Mapping[str, float | None]
    score: float | None
    unknown: tuple[str, ...] = ()


def candidates(links: Mapping[Hop, LinkValues], src: int, dst: int, objective: Objective) -> list[Hops]:
    """Return the ways from one switch to another that are worth comparing.

    They are the ways of least delay, and for what the objective weighs those of least loss (as additive
    -log(1 - loss)) and of most available bandwidth; unknown values count for what least harms a link. With
    k shortest simple paths (Yen 1971, as in networkx) the best under a single term is always among them.
    """
    graph = _graph(links)
    if src not in graph or dst not in graph:
        return [()] if src == dst else []
    found = [_shortest(graph, src, dst, "delay")]
    if "loss" in objective.weights:
        found.append(_shortest(graph, src, dst, "loss"))
    if "available_bandwidth" in objective.weights:
        found.append(_widest(graph, links, src, dst))
    return list(dict.fromkeys(itertools.chain.from_iterable(found)))


def _graph(links: Mapping[Hop, LinkValues]) -> Any:
    """Return switches and links as nodes of a graph, so that parallel links are different ways."""
    graph = networkx.DiGraph()
    for hop in sorted(links):
        values = links[hop]
        delay_s, loss = values.delay_s.value, values.loss_ratio.value
        graph.add_edge(
            hop.src,
            hop,
            delay=UNMEASURED_DELAY_S if delay_s is None else delay_s,
            loss=1e-6 - math.log1p(-min(loss or 0.0, 0.999)),
        )
        graph.add_edge(hop, hop.dst, delay=0.0, loss=0.0)
    return graph


def _shortest(graph: Any, src: int, dst: int, weight: str) -> list[Hops]:
    if src == dst:
        return [()]
    try:
        ways: Iterator[list[Any]] = networkx.shortest_simple_paths(graph, src, dst, weight=weight)
        return [
            tuple(node for node in way if isinstance(node, Hop))
            for way in itertools.islice(ways, PATHS_PER_CRITERION)
        ]
    except networkx.NetworkXNoPath:
        return []


def _widest(graph: Any, links: Mapping[Hop, LinkValues], src: int, dst: int) -> list[Hops]:
    """Return the ways of least delay among those of the largest bottleneck.

    The bottleneck is the largest value at which the links of at least that value still connect.
    """
    known = sorted({v for link in links.values() if (v := link.available_bps.value) is not None})
    low, high, best = 0, len(known), None
    while low < high:
        middle = (low + high) // 2
        part = _at_least(graph, links, known[middle])
        if src in part and dst in part and networkx.has_path(part, src, dst):
            best, low = part, middle + 1
        else:
            high = middle
    return [] if best is None else _shortest(best, src, dst, "delay")


def _at_least(graph: Any, links: Mapping[Hop, LinkValues], available_bps: float) -> Any:
    narrow = [hop for hop, link in links.items() if (link.available_bps.value or -1.0) < available_bps]
    part = graph.copy()
    part.remove_nodes_from(narrow)
    return part


def judge(
    objective: Objective,
    ways: Iterable[Hops],
    links: Mapping[Hop, LinkValues],
    access: Collection[LinkValues],
) -> list[Judged]:
    """Return the ways whose links are all there, the best first.

    Those with an unknown value come after all others: unknown is never zero. `access` are the links between
    the hosts and their switches: they are part of every way, and left out where they are unknown, since
    they make no difference. Equals keep their order.
    """
    there = [hops for hops in ways if all(hop in links for hop in hops)]
    judged = [_values(objective, hops, links, access) for hops in there]
    ranges = {term.name: _range(term, judged) for term in objective.terms}
    scored = [_scored(objective, way, ranges) for way in judged]
    return sorted(scored, key=lambda way: math.inf if way.score is None else way.score)


def _values(
    objective: Objective, hops: Hops, links: Mapping[Hop, LinkValues], access: Collection[LinkValues]
) -> Judged:
    values: dict[str, float | None] = {}
    missing = []
    for term in objective.terms:
        at_hosts = [value for link in access if (value := getattr(link, term.metric).value) is not None]
        on_way = [(links[hop].id, getattr(links[hop], term.metric)) for hop in hops]
        gone = [f"{term.name} of link {name}: {part.reason}" for name, part in on_way if part.value is None]
        missing += gone
        values[term.name] = None if gone else _folded(term, [*at_hosts, *(part.value for _, part in on_way)])
    return Judged(hops=hops, values=values, score=None, unknown=tuple(missing))


def _folded(term: Term, values: Sequence[float]) -> float:
    if term.higher_is_better:
        return min(values, default=0.0)
    if term.unit == "ratio":
        return 1 - math.prod(1 - value for value in values)
    return math.fsum(values)


def _range(term: Term, judged: Sequence[Judged]) -> tuple[float, float]:
    """Return the best value and the distance to the worst one, at least the floor."""
    known = [value for way in judged if (value := way.values[term.name]) is not None]
    if not known:
        return 0.0, term.floor
    best = max(known) if term.higher_is_better else min(known)
    return best, max(max(known) - min(known), term.floor)


def _scored(objective: Objective, way: Judged, ranges: Mapping[str, tuple[float, float]]) -> Judged:
    score: float | None = 0.0
    for name, weight in objective.weights.items():
        value = way.values[name]
        if value is None or score is None:
            score = None
            continue
        best, span = ranges[name]
        score += weight * abs(value - best) / span
    return Judged(hops=way.hops, values=way.values, score=score, unknown=way.unknown)


def is_clearly_better(objective: Objective, one: Judged, other: Judged) -> bool:
    """Tell whether a way is so much better than another that moving is worth it."""
    if one.score is None or other.score is None:
        return one.score is not None
    term = objective.single
    if term is None:
        return other.score - one.score > BETTER_SCORE
    mine, theirs = one.values[term.name], other.values[term.name]
    assert mine is not None
    assert theirs is not None
    gain = mine - theirs if term.higher_is_better else theirs - mine
    return gain > max(term.floor, BETTER_SHARE * theirs)


@dataclass(slots=True)
class Patience:
    """What a flow remembers, so that it does not flap."""

    better: Hops | None = None
    better_since: float = 0.0
    moves: list[float] = field(default_factory=list)

    def choose(
        self, now: float, objective: Objective, judged: Sequence[Judged], current: Hops | None
    ) -> Hops:
        """Return the way to take: the current one, unless it is gone or another is better for long enough."""
        best = judged[0]
        here = next((way for way in judged if way.hops == current), None)
        if here is None:
            self.better = None
            return best.hops
        if best.hops == here.hops or not is_clearly_better(objective, best, here):
            self.better = None
            return here.hops
        if self.better != best.hops:
            self.better, self.better_since = best.hops, now
        self.moves = [at for at in self.moves if at > now - MEMORY_S]
        dwell_s = min(MAX_DWELL_S, DWELL_S * 2 ** (len(self.moves) - 1)) if self.moves else 0.0
        if now - self.better_since < HOLD_S or (self.moves and now - self.moves[-1] < dwell_s):
            return here.hops
        self.moves.append(now)
        self.better = None
        return best.hops


def why_chosen(objective: Objective, judged: Sequence[Judged], chosen: Hops) -> str:
    """Return a sentence on why a way is taken."""
    way = next(way for way in judged if way.hops == chosen)
    if way.score is None:
        return f"no way can be judged by {objective}: {_first(way.unknown)}; the first one by delay is taken"
    shown = _shown(objective, way)
    if way.hops == judged[0].hops:
        others = sum(other.score is None for other in judged)
        beside = f", {others} others cannot be judged" if others else ""
        return f"best of {len(judged)} alternatives for {objective}: {shown}{beside}"
    return (
        f"{shown}; the best one, {_shown(objective, judged[0])}, is not yet better by enough for long enough"
    )


def why_not(objective: Objective, way: Judged, chosen: Judged) -> str:
    """Return a sentence on why a way is not taken."""
    if way.score is None:
        return f"cannot be judged: {_first(way.unknown)}"
    if chosen.score is None or way.score < chosen.score:
        return f"better ({_shown(objective, way)}), not yet by enough for long enough"
    if way.score == chosen.score:
        return f"as good ({_shown(objective, way)}), further behind in the order"
    return f"worse: {_shown(objective, way)} against {_shown(objective, chosen)}"


def _first(reasons: Sequence[str]) -> str:
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}" if reasons else "no reason"


def _shown(objective: Objective, way: Judged) -> str:
    parts = [
        f"{name.replace('_', ' ')} {TERMS[name].shown(value)}"
        for name, value in way.values.items()
        if value is not None
    ]
    score = "" if objective.single is not None or way.score is None else f" (score {way.score:.3f})"
    return ", ".join(parts) + score
