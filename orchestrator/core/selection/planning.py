"""The arithmetic of `plan`: which nodes reach the target loss soonest.

A set S takes, for R more rounds,

    seconds(S) = (R * round(S) + loading(S)) / e(S)

where round(S) is the slowest member's, or what the orchestrator's link takes for all of S if that is longer,
and e(S) in (0, 1] the progress of a round with S, as a share of one with all nodes:

    e(S) = (1 + noise / samples(all)) / (1 + noise / samples(S)) * exp(-drift * d(S))

The first factor is McCandlish et al. 2018 (arXiv 1812.06162, Eq. 2.11): averages over fewer samples are
noisier and need more steps, by 1 + noise scale / batch. d(S) is the total variation distance between the
make-up of S's data and that of all nodes': what S never sees it does not learn. No S below the least
efficiency is taken, because the number of rounds is fixed: the loss at the end must be that of all nodes, or
nearly.

Ordered by time, the first k nodes dominate any other set whose slowest member is the k-th (more samples at
the same pace), so N sets are compared, not 2^N. Shapes: N nodes, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

from orchestrator.core.errors import InvalidValue

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What `plan` weighs time against.

    `noise_nodes`: the gradient noise scale in samples of an average node; so many nodes waste half of the
    samples. `least_efficiency`: no set makes less progress per round than this share of all nodes'. `drift`:
    how much progress the distance d of the kept data from the whole costs, as exp(-drift * d). `gain`: the
    set is changed only if that saves this share of the time left. `patience`: a round closes without who
    takes this many times the forecast, if `quorum` of the members have answered.
    """

    noise_nodes: float = 3.0
    least_efficiency: float = 0.8
    drift: float = 1.0
    gain: float = 0.1
    patience: float = 1.5
    quorum: float = 0.5

    def __post_init__(self) -> None:
        for name, low, high in (
            ("noise_nodes", 0.0, float("inf")),
            ("least_efficiency", 0.0, 1.0),
            ("drift", 0.0, float("inf")),
            ("gain", 0.0, 1.0),
            ("patience", 1.0, float("inf")),
            ("quorum", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not (isfinite(value) and low <= value <= high):
                raise InvalidValue(f"plan: {name} is {value}, must be in {low:g}..{high:g}")


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
    samples = np.cumsum(pool.samples[order])
    makeup = None if pool.makeup is None else pool.makeup[order]
    efficiency = _efficiency(samples, makeup, pool.samples[order], pool, options)
    return Costs(
        order=order,
        seconds=(rounds * round_s + load_s) / efficiency,
        round_s=round_s,
        efficiency=efficiency,
    )


def cost_of(
    members: npt.NDArray[np.bool_], pool: Pool, rounds: int, options: PlanOptions
) -> tuple[float, float]:
    """Return seconds and efficiency of one set [N]; an empty one costs infinitely much."""
    if not members.any():
        return float("inf"), 0.0
    shared_s = float(members.sum()) * pool.shared_s
    round_s = max(float(pool.round_s[members].max()), shared_s)
    mine = pool.samples[members]
    makeup = None if pool.makeup is None else pool.makeup[members]
    efficiency = float(_efficiency(np.cumsum(mine), makeup, mine, pool, options)[-1])
    return (rounds * round_s + float(pool.load_s[members].max())) / efficiency, efficiency


def _efficiency(
    samples: Floats, makeup: Floats | None, weights: Floats, pool: Pool, options: PlanOptions
) -> Floats:
    """Return e of the sets whose samples are `samples` [n]; `makeup` [n, C] and `weights` [n] likewise."""
    noise = options.noise_nodes * float(pool.samples.mean())
    noisy = (1 + noise / float(pool.samples.sum())) / (1 + noise / samples)
    if makeup is None or pool.makeup is None or options.drift == 0:
        return np.asarray(noisy)
    whole = pool.samples @ pool.makeup / pool.samples.sum()
    mixture = np.cumsum(makeup * weights[:, None], axis=0) / samples[:, None]
    distance = np.abs(mixture - whole).sum(axis=1) / 2
    return np.asarray(noisy * np.exp(-options.drift * distance))
