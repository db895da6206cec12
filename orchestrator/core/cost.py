"""What a placement costs: Phi = alpha * L + beta * U + gamma * P (Koch 2025, Eq. 3).

L, seconds per token: compute of head and stages, plus per hop the path's delay, the activation's transmission
at the available bandwidth, and the expected delay by retransmission; plus the prefill of the prompt, shared
out over the tokens generated after it.

Retransmission: a decoding token's activation travels alone, so a loss is found by TCP's timer only. A
message of n segments at loss p waits with probability 1 - (1 - p)^n for a timer of RTO = RTT + 0.2 s, which
doubles at each further loss: (1 - (1 - p)^n) * RTO / (1 - 2 p), for p < 0.5; beyond that a path is unusable.

U: how far nodes are beyond their utilisation limit, plus the sum of squared shares of the work (1 if one node
does it all, 1/k if k nodes share evenly). P: sensitivity of the layers that run on untrusted nodes.

All terms are sums over stages and hops, which is what the solvers build on. Index legend: i, j nodes;
a, b layer boundaries, a stage being layers [a, b). Infinity in a table means not allowed; it never leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
import numpy.typing as npt

from orchestrator.core.errors import InvalidValue
from orchestrator.core.model import ModelGraph, Network, NodeState, Shard

Floats = npt.NDArray[np.float64]

SEGMENT_BYTES = 1448
RTO_MIN_S = 0.2
FAIR_SHARE_RATIO = 0.1
"""A flow gets at least this share of a link's capacity, however much of it is in use: TCP shares."""
LOSS_LIMIT_RATIO = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CostWeights:
    """alpha (per second), beta and gamma of Koch 2025, Eq. 3."""

    latency: float = 1.0
    utilisation: float = 0.1
    privacy: float = 1.0

    def __post_init__(self) -> None:
        for name in ("latency", "utilisation", "privacy"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise InvalidValue(f"cost weight {name} is {value}, must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is expected of requests; `context_tokens` is what a KV cache must hold."""

    prompt_tokens: int = 32
    generated_tokens: int = 128
    context_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "generated_tokens", "context_tokens"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"workload: {name} is {getattr(self, name)}, must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A placement to be found, complete: nodes, network, model, rules.

    `held` are shards that nodes still hold while a new route is made ready: their memory is taken, unless the
    new shard is the same. `all_trusted` allows trusted nodes only (privacy=high).
    """

    model: ModelGraph
    nodes: tuple[NodeState, ...]
    network: Network
    weights: CostWeights = field(default_factory=CostWeights)
    workload: Workload = field(default_factory=Workload)
    utilisation_limit: float = 0.85
    min_nodes: int = 1
    all_trusted: bool = False
    pinned_head: str | None = None
    held: Mapping[str, Shard] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """A placement's cost: `phi` and its terms.

    `latency_s` (L) = `token_s` + `prefill_s` / generated tokens; `token_s` = compute + delay + transmission
    + retransmission, once round the ring.
    """

    phi: float
    latency_s: float
    utilisation: float
    privacy: float
    token_s: float
    prefill_s: float
    compute_s: float
    delay_s: float
    transmission_s: float
    retransmission_s: float

    def terms(self) -> dict[str, float]:
        """Return all terms but `phi` by name."""
        names = [name for name in self.__slots__ if name != "phi"]
        return {name: getattr(self, name) for name in names}
