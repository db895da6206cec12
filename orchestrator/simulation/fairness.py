"""Share links among flows max-min fairly, each flow up to a bound of its own (progressive filling).

Bertsekas and Gallager, Data Networks, section 6.5.2. All links of the same pass freeze at once: a flow whose
bound is within the fair share of each of its links has its bound, and a link whose every open flow is worst
off here gives each of them its share. Shares never shrink from pass to pass, so nothing frozen is undone.

Shapes: F flows, H links at most on a path, L links.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_TOLERANCE = 1e-12


def max_min_rates(paths: Indices, capacities: Floats, bounds: Floats) -> Floats:
    """Return the max-min fair rates [F] of flows over `paths` [F, H] (link numbers, each once per path).

    Short paths are filled up with a link of infinite capacity. `capacities` [L] are positive, `bounds` [F]
    positive and, where no finite link is crossed, finite.
    """
    rates = np.zeros(len(bounds))
    free = capacities.copy()
    open_flows = np.arange(len(bounds))
    while len(open_flows):
        mine, bound = paths[open_flows], bounds[open_flows]
        count = np.bincount(mine.ravel(), minlength=len(free))
        share = np.full(len(free), np.inf)
        used = count > 0
        share[used] = np.maximum(free[used], 0.0) / count[used]
        least = share[mine].min(axis=1)
        bounded = bound <= least * (1 + _TOLERANCE)
        frozen = bounded | _at_bottleneck(mine, share, np.minimum(least, bound))
        value = np.minimum(least, bound)[frozen]
        rates[open_flows[frozen]] = value
        taken = np.bincount(
            mine[frozen].ravel(), weights=np.repeat(value, mine.shape[1]), minlength=len(free)
        )
        free = free - np.where(np.isfinite(free), taken, 0.0)
        open_flows = open_flows[~frozen]
    return rates


def _at_bottleneck(mine: Indices, share: Floats, level: Floats) -> npt.NDArray[np.bool_]:
    """Find the flows that cross a link at which nobody could get less than that link's share."""
    lowest = np.full(len(share), np.inf)
    np.minimum.at(lowest, mine.ravel(), np.repeat(level, mine.shape[1]))
    settled = np.isfinite(share) & (lowest >= share * (1 - _TOLERANCE))
    return np.asarray(settled[mine].any(axis=1))
