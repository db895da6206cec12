"""How much progress a round makes with fewer nodes than all.

Averages over fewer samples are noisier and need more steps, by 1 + noise scale / samples (McCandlish et al.
2018, arXiv 1812.06162, Eq. 2.11).
"""

from __future__ import annotations

from math import ceil
from typing import TypeVar

import numpy as np
import numpy.typing as npt

NOISE_NODES = 4.9
"""Gradient noise scale in samples of an average node's round; docs/policies.md says what it was read off."""

Amount = TypeVar("Amount", float, npt.NDArray[np.float64])


def efficiency(samples: Amount, *, whole: float, noise: float) -> Amount:
    """Return a round's progress with `samples`, of one with the `whole`; `noise` is the noise scale."""
    return (1 + noise / whole) / (1 + noise / samples)


def least_nodes(nodes: int, *, noise_nodes: float, least_efficiency: float) -> int:
    """Return how few of `nodes` with equal samples still make `least_efficiency` of the progress of all."""
    most = (1 + noise_nodes / nodes) / least_efficiency - 1 if least_efficiency > 0 else float("inf")
    if most * nodes <= noise_nodes:
        return nodes
    # What is a whole number but for rounding is that number.
    return min(nodes, max(1, ceil(noise_nodes / most - 1e-9)))
