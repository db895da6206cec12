"""What a placement costs: Phi = alpha * L + beta * U + gamma * P (Koch 2025, Eq. 3).

L, seconds per token: compute of head and stages, plus per hop the path's delay, the activation's transmission
at the available bandwidth, and the expected delay by retransmission; plus the prefill of the prompt, shared
out over the tokens generated after it.

Retransmission: a decoding token's activation travels alone, so a loss is found by TCP's timer only. A
message of n segments at loss p waits with probability 1 - (1 - p)^n for a timer of RTO = RTT + 0.2 s, which
doubles at each further loss: (1 - (1 - p)^n) * RTO / (1 - 2 p), for p < 0.5; beyond that a path is unusable.

U: how far nodes are beyond their utilisation limit (per head and stage on them), plus the sum of squared
shares of the work (1 if one node does it all, 1/k if k nodes share evenly). P: sensitivity of the layers that
run on untrusted nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite

import numpy as np
import numpy.typing as npt

from orchestrator.core.errors import Infeasible, InvalidValue
from orchestrator.core.model import ModelGraph, Network, NodeState, PathMetrics, Placement, Shard
from orchestrator.core.ranges import check_ranges

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
        check_ranges("cost weights", self, latency=(0, inf), utilisation=(0, inf), privacy=(0, inf))


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


def check_feasible(problem: Problem, placement: Placement) -> None:
    """Check every constraint on `placement` (Koch 2025, Eqs. 4 to 6).

    Raises:
        Infeasible: the reason names the constraint, the node or hop, and the figures.
    """
    if placement.layer_count != len(problem.model.layers):
        raise Infeasible(
            "layers", f"places {placement.layer_count} layers, the model has {len(problem.model.layers)}"
        )
    if len(placement.nodes) < problem.min_nodes:
        raise Infeasible("min-nodes", f"uses {len(placement.nodes)} nodes, min_nodes is {problem.min_nodes}")
    by_name = {node.name: node for node in problem.nodes}
    for shard in placement.shards():
        _check_shard(problem, by_name.get(shard.node), shard)
    for src, dst in placement.hops:
        reason = path_problem(problem.network.path(src, dst))
        if reason is not None:
            raise Infeasible("paths", reason)


def path_problem(path: PathMetrics) -> str | None:
    """Say why a path cannot be used as a hop, or None if it can."""
    needed = {"delay_s": path.delay_s, "loss_ratio": path.loss_ratio, "available_bps": path.usable_bps}
    for name, measurement in needed.items():
        if measurement.value is None:
            return f"path {path.src} to {path.dst}: {name} is unknown: {measurement.reason}"
    loss = path.loss_ratio.value
    if loss is not None and loss >= LOSS_LIMIT_RATIO:
        return f"path {path.src} to {path.dst} loses {loss:.0%}; usable is below {LOSS_LIMIT_RATIO:.0%}"
    if share_bps(path) <= 0:
        return f"path {path.src} to {path.dst} has no available bandwidth"
    return None


def share_bps(path: PathMetrics) -> float:
    """Return what a new flow can expect: the usable bandwidth, or its fair share of a full link."""
    available = path.usable_bps.value or 0.0
    capacity = path.capacity_bps.value
    return available if capacity is None else max(available, FAIR_SHARE_RATIO * capacity)


def retransmission_s(size_bytes: int, loss_ratio: Floats, rto_s: Floats) -> Floats:
    """Return the expected wait for retransmission timers of a message (the model is in the file's head)."""
    segments = max(1, -(-size_bytes // SEGMENT_BYTES))
    hit = 1 - np.power(1 - loss_ratio, segments)
    # A lossless path waits for no timer, however long that would be.
    return np.asarray(np.where(loss_ratio > 0, hit * rto_s / (1 - 2 * loss_ratio), 0.0))


def decode_layer_s(node: NodeState, model: ModelGraph) -> float:
    """Return the time of one token through an average layer, infinite if it cannot be known."""
    if node.decode_layer_s is not None:
        return node.decode_layer_s
    return _modelled_s(node, _mean_flops(model), 1)


def prefill_layer_s(node: NodeState, model: ModelGraph, tokens: int) -> float:
    """Return the time of `tokens` prompt tokens at once through an average layer, infinite if unknown."""
    if node.prefill_layer_s_per_token is not None:
        return node.prefill_layer_s_per_token * tokens + (node.layer_overhead_s or 0.0)
    return _modelled_s(node, _mean_flops(model), tokens)


def head_s(node: NodeState, model: ModelGraph, tokens: int) -> float:
    """Return the time of the head's work on `tokens`, infinite if it cannot be known."""
    if node.compute_flops is not None:
        return tokens * model.head.flops_per_token / node.compute_flops
    if node.decode_layer_s is not None:
        return tokens * node.decode_layer_s * model.head.flops_per_token / max(_mean_flops(model), 1e-30)
    return float("inf")


def overload(node: NodeState, limit: float) -> float:
    """Return how far a node's utilisation is beyond `limit`: 0 up to it (or unknown), 1 when saturated."""
    used = node.cpu_utilisation
    if used is None or used <= limit:
        return 0.0
    return min(1.0, (used - limit) / max(1 - limit, 1e-9))


def free_bytes(node: NodeState) -> int:
    """Return what a shard may take here; -1 if the node's memory is unknown, so that nothing fits."""
    return -1 if node.memory_bytes is None else node.memory_bytes - node.reserved_bytes


def shard_bytes(problem: Problem, shard: Shard) -> int:
    """Return what a shard takes: parameters, and the KV cache of a full context."""
    context = problem.workload.context_tokens
    layers = problem.model.layers[shard.first_layer : shard.end_layer]
    head = problem.model.head.parameter_bytes if "head" in shard.roles else 0
    return head + sum(layer.parameter_bytes + layer.kv_bytes_per_token * context for layer in layers)


def bytes_beside(problem: Problem, held: Shard, shard: Shard) -> int:
    """Return what `held` takes beside `shard` on the same node: what both have is there once."""
    first, end = max(held.first_layer, shard.first_layer), min(held.end_layer, shard.end_layer)
    context = problem.workload.context_tokens
    shared = sum(
        layer.parameter_bytes + layer.kv_bytes_per_token * context
        for layer in problem.model.layers[first : max(first, end)]
    )
    if "head" in held.roles and "head" in shard.roles:
        shared += problem.model.head.parameter_bytes
    return shard_bytes(problem, held) - shared


def node_problem(node: NodeState, model: ModelGraph) -> str | None:
    """Say why a node cannot take any shard, or None if it can."""
    if not node.alive:
        return f"node {node.name} is not alive"
    if node.draining:
        return f"node {node.name} is being drained"
    if node.memory_bytes is None:
        return f"node {node.name}: its memory is unknown"
    if not isfinite(decode_layer_s(node, model)):
        return f"node {node.name}: neither its layer time nor compute_flops and layer_overhead_s are known"
    return None


def _check_shard(problem: Problem, node: NodeState | None, shard: Shard) -> None:
    if node is None:
        raise Infeasible("no-nodes", f"node {shard.node} does not exist or may not be used")
    reason = node_problem(node, problem.model)
    if reason is not None and not (node.alive and node.draining and node.name == problem.pinned_head):
        raise Infeasible("no-nodes", reason)
    layers = problem.model.layers[shard.first_layer : shard.end_layer]
    private = "head" in shard.roles or problem.all_trusted or any(layer.privacy_critical for layer in layers)
    if private and not node.trusted:
        what = "the head" if "head" in shard.roles else "privacy-critical layers"
        raise Infeasible("trusted-head", f"node {node.name} is not trusted, so it must not run {what}")
    if "head" in shard.roles and problem.pinned_head not in (None, node.name):
        raise Infeasible("pinned", f"the head is pinned to {problem.pinned_head}, not {node.name}")
    held = problem.held.get(node.name)
    also = bytes_beside(problem, held, shard) if held is not None else 0
    needed = shard_bytes(problem, shard)
    if needed + also > free_bytes(node):
        beside = f" beside {also:,} it still holds" if also else ""
        raise Infeasible(
            "memory", f"node {node.name} needs {needed:,} bytes{beside}, it has {free_bytes(node):,} free"
        )


def _modelled_s(node: NodeState, flops: float, tokens: int) -> float:
    if node.compute_flops is None or node.layer_overhead_s is None:
        return float("inf")
    return tokens * flops / node.compute_flops + node.layer_overhead_s


def _mean_flops(model: ModelGraph) -> float:
    return sum(layer.flops_per_token for layer in model.layers) / len(model.layers)
