"""The arithmetic of `plan`: which nodes reach the target loss soonest.

A set S takes, for R more rounds,

    seconds(S) = (R * round(S) + loading(S)) / e(S)

where round(S) is the slowest member's, or what the orchestrator's link takes for all of S if that is longer,
and e(S) in (0, 1] the progress of a round with S, as a share of one with all nodes:

    e(S) = (1 + noise / samples(all)) / (1 + noise / samples(S)) * exp(-drift * d(S))

The first factor is `progress.efficiency`: averages over fewer samples are noisier. d(S) is the total
variation distance between the make-up of S's data and that of all nodes', as far as it is more than that of
as many nodes drawn by lot: what S never sees it does not learn. No S below the least efficiency is taken,
because the number of rounds is fixed: the loss at the end must be that of all nodes, or nearly.

Ordered by time, the first k nodes dominate any other set whose slowest member is the k-th (more samples at
the same pace), so N sets are compared, not 2^N. Shapes: N nodes, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from orchestrator.core.ranges import check_ranges
from orchestrator.core.selection.progress import NOISE_NODES, efficiency

Floats = npt.NDArray[np.float64]

_SIZES = 2048
"""Of more sets than this the distance is not worked out for each: a million of them would take seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What planning weighs time against (docs/policies.md)."""

    noise_nodes: float = NOISE_NODES
    """Gradient noise scale in samples of an average node; so many nodes waste half of the samples."""
    least_efficiency: float = 0.7
    """Progress per round that a set must make, as a share of all nodes'."""
    drift: float = 1.0
    """What the distance d of the kept data from the whole costs: progress is times exp(-drift * d)."""
    gain: float = 0.1
    """Share of the time left that a change of the set must save."""
    patience: float = 1.5
    """A round does not wait longer than so many times its forecast, if `quorum` have answered."""
    quorum: float = 0.5
    """Share of the members."""

    def __post_init__(self) -> None:
        check_ranges("plan", self, noise_nodes=(0, 1e6), drift=(0, 1e6), patience=(1, 1e6))
        check_ranges("plan", self, least_efficiency=(0, 1), gain=(0, 1), quorum=(0, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What could take part: seconds of a round [N], seconds of loading once [N], samples of a round [N].

    `shared_s` is what the orchestrator's link takes for one node's transfers of a round. `makeup` [N, C] are
    the shares of classes in each node's data, None where they are not known.
    """

    round_s: Floats
    load_s: Floats
    samples: Floats
    shared_s: float = 0.0
    makeup: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The N sets of the fastest 1..N: node indices by time, and of each set what it costs and why."""

    order: npt.NDArray[np.intp]
    seconds: Floats
    round_s: Floats
    efficiency: Floats

    def best(self, least_efficiency: float) -> int:
        """Return the size of the cheapest set that is efficient enough; all nodes always are."""
        allowed = self.efficiency >= min(least_efficiency, float(self.efficiency[-1]))
        return int(np.argmin(np.where(allowed, self.seconds, np.inf))) + 1


def costs(pool: Pool, rounds: int, options: PlanOptions) -> Costs:
    """Work out the N sets of the fastest 1..N nodes for `rounds` more rounds."""
    order = np.argsort(pool.round_s + pool.load_s / max(rounds, 1), kind="stable")
    counts = np.arange(1, len(order) + 1)
    round_s = np.maximum(np.maximum.accumulate(pool.round_s[order]), counts * pool.shared_s)
    load_s = np.maximum.accumulate(pool.load_s[order])
    progress = _progress(np.cumsum(pool.samples[order]), pool, options)
    if pool.makeup is not None and options.drift > 0:
        progress *= np.exp(-options.drift * _distances(pool, pool.makeup, order))
    return Costs(
        order=order,
        seconds=(rounds * round_s + load_s) / progress,
        round_s=round_s,
        efficiency=progress,
    )


def cost_of(
    members: npt.NDArray[np.bool_], pool: Pool, rounds: int, options: PlanOptions
) -> tuple[float, float]:
    """Return seconds and efficiency of one set [N]; an empty one costs infinitely much."""
    if not members.any():
        return float("inf"), 0.0
    shared_s = float(members.sum()) * pool.shared_s
    round_s = max(float(pool.round_s[members].max()), shared_s)
    samples = pool.samples[members]
    progress = float(_progress(samples.sum(keepdims=True), pool, options)[0])
    if pool.makeup is not None:
        mixture = samples @ pool.makeup[members] / samples.sum()
        size = members.sum(keepdims=True)
        progress *= exp(-options.drift * float(_beyond_chance(mixture[None], size, pool, pool.makeup)[0]))
    return (rounds * round_s + float(pool.load_s[members].max())) / progress, progress


def _progress(samples: Floats, pool: Pool, options: PlanOptions) -> Floats:
    """Return e of sets with `samples` [n] in all, but for the drift."""
    noise = options.noise_nodes * float(pool.samples.mean())
    return efficiency(samples, whole=float(pool.samples.sum()), noise=noise)


def _distances(pool: Pool, makeup: Floats, order: npt.NDArray[np.intp]) -> Floats:
    """Return d of the sets of the first 1..N of `order`; of many by line between _SIZES of them."""
    count = len(order)
    counts = np.arange(1, count + 1)
    sizes = counts if count <= _SIZES else np.unique(np.geomspace(1, count, _SIZES).round().astype(np.intp))
    blocks = csr_array((pool.samples[order], order, np.concatenate([[0], sizes])), shape=(len(sizes), count))
    sums = np.cumsum(blocks @ makeup, axis=0)
    mixtures = sums / np.cumsum(pool.samples[order])[sizes - 1, None]
    return np.asarray(np.interp(counts, sizes, _beyond_chance(mixtures, sizes, pool, makeup)))


def _beyond_chance(mixtures: Floats, sizes: npt.NDArray[np.intp], pool: Pool, makeup: Floats) -> Floats:
    """Return how much farther `mixtures` [n, C] of so many nodes are from the whole than sets drawn by lot.

    Even parts of the same text differ a little; the mean of k of N nodes drawn by lot is that far off
    divided by sqrt(k), times the share that sampling without replacement leaves.
    """
    whole, count = _whole(pool, makeup), len(makeup)
    single = float(_distance(makeup[:: -(-count // _SIZES)], whole).mean())
    chance = single * np.sqrt((count - sizes) / (sizes * max(count - 1, 1)))
    return np.asarray(np.maximum(_distance(mixtures, whole) - chance, 0.0))


def _distance(mixture: Floats, whole: Floats) -> Floats:
    """Return the total variation distance of `mixture` [..., C] from `whole` [C]."""
    return np.asarray(np.abs(mixture - whole).sum(axis=-1) / 2)


def _whole(pool: Pool, makeup: Floats) -> Floats:
    return np.asarray(pool.samples @ makeup / pool.samples.sum())
