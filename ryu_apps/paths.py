"""Paths over switches and the values of a path from those of its links: pure.

A switch is its datapath id, a hop the directed link between two switches. Delays in seconds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from ryu_apps.loss import path_interval
from ryu_apps.stats import Measurement, unknown

UNMEASURED_DELAY_S = 0.005
"""What a link counts for in the choice of a path before its delay is known."""
DELAY_STEP_S = 0.001
"""Delays are rounded to this in the choice, so that noise does not choose between equal paths."""

_Fold = Callable[[Sequence[float]], float]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Hop:
    """A directed link between two switches."""

    src: int
    src_port: int
    dst: int
    dst_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchPath:
    """A loop-free way from one switch to another; no hops when they are the same."""

    hops: tuple[Hop, ...]
    cost_s: float


def least_delay_path(hops: Mapping[Hop, float | None], src: int, dst: int) -> SwitchPath | None:
    """Return the path of least delay from `src` to `dst`, None when there is none.

    Ties go to fewer hops, then to the smallest datapath ids and ports, so that the same network always
    gives the same path.
    """
    neighbours: dict[int, list[Hop]] = {}
    for hop in hops:
        neighbours.setdefault(hop.src, []).append(hop)
    queue: list[tuple[int, int, tuple[Hop, ...]]] = [(0, 0, ())]
    done: set[int] = set()
    while queue:
        steps, count, taken = heapq.heappop(queue)
        here = taken[-1].dst if taken else src
        if here == dst:
            return SwitchPath(hops=taken, cost_s=steps * DELAY_STEP_S)
        if here in done:
            continue
        done.add(here)
        for hop in neighbours.get(here, ()):
            if hop.dst not in done:
                heapq.heappush(queue, (steps + _steps(hops[hop]), count + 1, (*taken, hop)))
    return None


def path_cost_s(path: Sequence[Hop], hops: Mapping[Hop, float | None]) -> float:
    """Return what `path` would cost now, infinity when one of its links is gone."""
    if any(hop not in hops for hop in path):
        return math.inf
    return sum(_steps(hops[hop]) for hop in path) * DELAY_STEP_S


def _steps(delay_s: float | None) -> int:
    return round((UNMEASURED_DELAY_S if delay_s is None else delay_s) / DELAY_STEP_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathValues:
    """The values of a path; the same words as those of a link."""

    delay_s: Measurement
    jitter_s: Measurement
    loss_ratio: Measurement
    capacity_bps: Measurement
    used_bps: Measurement
    available_bps: Measurement
    available_to_own_bps: Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkValues(PathValues):
    """The measured values of one link, by its id."""

    id: str


METRICS = tuple(field.name for field in fields(PathValues))


def combine(links: Sequence[LinkValues], *, no_path: str) -> PathValues:
    """Return the values of a path over `links`; all unknown, because of `no_path`, when there are none.

    Delay and jitter add up, loss is 1 - product(1 - loss), capacity and available bandwidth are the
    smallest, used is that of the link with the smallest available bandwidth.
    """
    if not links:
        return _no_values(no_path)
    return PathValues(
        delay_s=_fold([(link.id, link.delay_s) for link in links], _sum),
        jitter_s=_fold([(link.id, link.jitter_s) for link in links], _sum),
        loss_ratio=_loss([(link.id, link.loss_ratio) for link in links]),
        capacity_bps=_fold([(link.id, link.capacity_bps) for link in links], min),
        used_bps=_used_at_bottleneck(links),
        available_bps=_fold([(link.id, link.available_bps) for link in links], min),
        available_to_own_bps=_fold([(link.id, link.available_to_own_bps) for link in links], min),
    )


def _no_values(reason: str) -> PathValues:
    seconds = unknown(reason, source="derived", unit="s")
    ratio = unknown(reason, source="derived", unit="ratio")
    rate = unknown(reason, source="derived", unit="bit/s")
    return PathValues(
        delay_s=seconds,
        jitter_s=seconds,
        loss_ratio=ratio,
        capacity_bps=rate,
        used_bps=rate,
        available_bps=rate,
        available_to_own_bps=rate,
    )


def _sum(values: Iterable[float]) -> float:
    return math.fsum(values)


def _any_lost(ratios: Iterable[float]) -> float:
    return 1 - math.prod(1 - ratio for ratio in ratios)


def _loss(parts: Sequence[tuple[str, Measurement]]) -> Measurement:
    """Combine the losses of links; the interval is that of the whole path, not made of the links' ends."""
    folded = _fold(parts, _any_lost)
    known = [(part.value, part.trials) for _, part in parts]
    links = [(ratio, trials) for ratio, trials in known if ratio is not None and trials is not None]
    low, high = path_interval(links) if len(links) == len(parts) else (None, None)
    return folded if folded.value is None else replace(folded, low=low, high=high)


def _fold(parts: Sequence[tuple[str, Measurement]], combine_values: _Fold) -> Measurement:
    """Combine one measurement per link; unknown, naming the first unknown link, if any is."""
    unit = parts[0][1].unit
    for link_id, part in parts:
        if part.reason is not None:
            return unknown(f"link {link_id}: {part.reason}", source="derived", unit=unit)
    measured = [part for _, part in parts]
    ages = [part.age_s for part in measured if part.age_s is not None]
    return Measurement(
        value=combine_values([part.value for part in measured if part.value is not None]),
        raw=_fold_known([part.raw for part in measured], combine_values),
        low=_fold_known([part.low for part in measured], combine_values),
        high=_fold_known([part.high for part in measured], combine_values),
        samples=min(part.samples for part in measured),
        age_s=max(ages, default=None),
        source="derived",
        unit=unit,
    )


def _fold_known(values: Sequence[float | None], combine_values: _Fold) -> float | None:
    known = [value for value in values if value is not None]
    return combine_values(known) if len(known) == len(values) else None


def _used_at_bottleneck(links: Sequence[LinkValues]) -> Measurement:
    for link in links:
        if link.available_bps.reason is not None:
            reason = f"link {link.id}: {link.available_bps.reason}"
            return unknown(reason, source="derived", unit="bit/s")
    narrowest = min(links, key=lambda link: link.available_bps.value or 0.0)
    return _fold([(narrowest.id, narrowest.used_bps)], min)
