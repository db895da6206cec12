"""The cost terms of every stage and hop of a problem, and of a placement made of them.

All terms of Phi are sums over stages and hops (orchestrator/core/cost.py says which), which is what the
solvers build on. Index legend: i, j nodes; a, b layer boundaries, a stage being layers [a, b). Infinity in a
table means not allowed or unknown; it never leaves this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.core.cost import (
    RTO_MIN_S,
    Breakdown,
    Floats,
    Problem,
    check_feasible,
    decode_layer_s,
    free_bytes,
    head_s,
    overload,
    path_problem,
    prefill_layer_s,
    retransmission_s,
    share_bps,
)
from orchestrator.core.model import NodeState, Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class HopCosts:
    """The terms of every hop (i, j) for one activation size, seconds; infinite where a hop cannot be used."""

    delay_s: Floats
    transmission_s: Floats
    retransmission_s: Floats
    prefill_s: Floats


class CostTables:
    """The terms of every stage and hop of a problem over `nodes`, computed once and summed by everybody.

    `stage_*[i, a, b]` cost layers [a, b) on node i; `allowed[i, a, b]` and `allowed_on_head[i, b]` say where
    memory and privacy permit them (the latter: head and layers [0, b) together, b = 0 for the head alone).
    """

    def __init__(self, problem: Problem, nodes: Sequence[NodeState]) -> None:
        self.problem = problem
        self.nodes = tuple(sorted(nodes, key=lambda node: node.name))
        self.names = tuple(node.name for node in self.nodes)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.layer_count = len(problem.model.layers)
        self._sum_layers()
        self._cost_stages()
        self._permit()
        self._read_network()
        self._hops: dict[int, HopCosts] = {}

    def stage_phi(self) -> Floats:
        """Return Phi's share of each stage [N, L+1, L+1]; infinite where not allowed."""
        return np.asarray(np.where(self.allowed, self._any_stage_phi(), np.inf))

    def head_phi(self) -> Floats:
        """Return Phi's share of a head with layers [0, b) beside it [N, L+1]; infinite where not allowed."""
        weights = self.problem.weights
        generated = self.problem.workload.generated_tokens
        latency = self.head_token_s + self.head_prefill_s / generated
        head = weights.latency * latency + weights.utilisation * self.overload
        first_stage = self._any_stage_phi()[:, 0, :]
        first_stage[:, 0] = 0.0
        return np.asarray(np.where(self.allowed_on_head, head[:, None] + first_stage, np.inf))

    def _any_stage_phi(self) -> Floats:
        weights = self.problem.weights
        latency = self.stage_token_s + self.stage_prefill_s / self.problem.workload.generated_tokens
        return np.asarray(
            weights.latency * latency
            + weights.utilisation * self.stage_utilisation
            + weights.privacy * self.stage_privacy
        )

    def hop_phi(self, boundary: int) -> Floats:
        """Return Phi's share of each hop [N, N] that carries what leaves layer `boundary` - 1."""
        hop = self.hops(boundary)
        generated = self.problem.workload.generated_tokens
        total = hop.delay_s + hop.transmission_s + hop.retransmission_s + hop.prefill_s / generated
        weight = self.problem.weights.latency
        return np.asarray(np.where(np.isfinite(total), weight * total, np.inf))

    def hops(self, boundary: int) -> HopCosts:
        """Return the terms of each hop for the activation at layer boundary `boundary` (0: from the head)."""
        model = self.problem.model
        size = model.layers[boundary - 1].activation_bytes if boundary else model.head.activation_bytes
        if size not in self._hops:
            self._hops[size] = self._cost_hops(size)
        return self._hops[size]

    def _sum_layers(self) -> None:
        layers = self.problem.model.layers
        context = self.problem.workload.context_tokens
        self._flops = _between([layer.flops_per_token for layer in layers])
        self._bytes = _between(
            [layer.parameter_bytes + layer.kv_bytes_per_token * context for layer in layers]
        )
        self._critical = _between([float(layer.privacy_critical) for layer in layers])
        self._sensitivity = _between([layer.sensitivity for layer in layers])
        self._count = _between([1.0] * len(layers))

    def _cost_stages(self) -> None:
        model, workload = self.problem.model, self.problem.workload
        total_flops = max(float(self._flops[0, -1]), 1e-30)
        decode = np.array([decode_layer_s(node, model) for node in self.nodes])
        prefill = np.array([prefill_layer_s(node, model, workload.prompt_tokens) for node in self.nodes])
        # Layers of one chain may differ; a node's measured time is that of an average one.
        relative = self._flops * (self.layer_count / total_flops)
        self.stage_token_s = _scale(decode, relative)
        self.stage_prefill_s = _scale(prefill, relative)
        self.head_token_s = np.array([head_s(node, model, 1) for node in self.nodes])
        self.head_prefill_s = np.array([head_s(node, model, workload.prompt_tokens) for node in self.nodes])
        self.overload = np.array([overload(node, self.problem.utilisation_limit) for node in self.nodes])
        share = np.square(self._flops / total_flops)
        self.stage_utilisation = self.overload[:, None, None] + share[None, :, :]
        exposed = np.array([0.0 if node.trusted else 1.0 for node in self.nodes])
        self.stage_privacy = exposed[:, None, None] * self._sensitivity[None, :, :]

    def _permit(self) -> None:
        trusted = np.array([node.trusted for node in self.nodes], dtype=bool)
        usable = np.array([self._is_usable(node) for node in self.nodes], dtype=bool)
        self._free = np.array([free_bytes(node) for node in self.nodes], dtype=np.float64)
        private = (self._critical > 0) | self.problem.all_trusted
        fits = self._bytes[None, :, :] + self._beside(with_head=False) <= self._free[:, None, None]
        known = np.isfinite(self.stage_token_s) & (self._count[None, :, :] > 0)
        self.allowed = known & fits & usable[:, None, None] & (trusted[:, None, None] | ~private[None, :, :])
        self._head_bytes = self._bytes[0, :] + self.problem.model.head.parameter_bytes
        self._can_head = usable & trusted & np.isfinite(self.head_token_s) & self._may_head()
        head_fits = self._head_bytes[None, :] + self._beside(with_head=True)[:, 0, :] <= self._free[:, None]
        self.allowed_on_head = self._can_head[:, None] & head_fits
        self.allowed_on_head[:, 1:] &= np.isfinite(self.stage_token_s[:, 0, 1:])

    def _is_usable(self, node: NodeState) -> bool:
        """A node that is drained takes no new work, but the head that is pinned to it stays."""
        return node.usable or (node.alive and node.name == self.problem.pinned_head)

    def _may_head(self) -> npt.NDArray[np.bool_]:
        pinned = self.problem.pinned_head
        return np.array([pinned is None or name == pinned for name in self.names], dtype=bool)

    def room_bytes(self) -> Floats:
        """Return [N]: the most bytes that one new shard may take on each node beside what the node holds."""
        stage = self._free[:, None, None] - self._beside(with_head=False)
        stage[(self._bytes[None, :, :] > stage) | (self._count[None, :, :] == 0)] = 0.0
        head = self._free[:, None] - self._beside(with_head=True)[:, 0, :]
        head[(self._head_bytes[None, :] > head) | ~self._can_head[:, None]] = 0.0
        return np.asarray(np.maximum(stage.max(axis=(1, 2)), head.max(axis=1)))

    def _beside(self, *, with_head: bool) -> Floats:
        """Return [N, L+1, L+1]: what a held shard takes beside each possible new one, in bytes."""
        boundary = np.arange(self.layer_count + 1)
        beside = np.zeros((len(self.names), self.layer_count + 1, self.layer_count + 1))
        for i, name in enumerate(self.names):
            held = self.problem.held.get(name)
            if held is None:
                continue
            first, end = np.maximum(boundary, held.first_layer), np.minimum(boundary, held.end_layer)
            beside[i] = self._bytes[held.first_layer, held.end_layer] - self._bytes[first[:, None], end]
            if "head" in held.roles and not with_head:
                beside[i] += self.problem.model.head.parameter_bytes
        return beside

    def _read_network(self) -> None:
        size = len(self.names)
        self._delay_s = np.full((size, size), np.inf)
        self._share_bps = np.full((size, size), np.nan)
        self._loss = np.full((size, size), np.nan)
        for (src, dst), path in self.problem.network.paths.items():
            i, j = self.index.get(src), self.index.get(dst)
            if i is None or j is None or i == j or path_problem(path) is not None:
                continue
            assert path.delay_s.value is not None
            assert path.loss_ratio.value is not None
            self._delay_s[i, j] = path.delay_s.value
            self._share_bps[i, j] = share_bps(path)
            self._loss[i, j] = path.loss_ratio.value

    def _cost_hops(self, size_bytes: int) -> HopCosts:
        reverse = np.where(np.isfinite(self._delay_s.T), self._delay_s.T, self._delay_s)
        rto_s = self._delay_s + reverse + RTO_MIN_S
        token_s = size_bytes * 8 / self._share_bps
        prompt_bytes = size_bytes * self.problem.workload.prompt_tokens
        return HopCosts(
            delay_s=self._delay_s,
            transmission_s=token_s,
            retransmission_s=retransmission_s(size_bytes, self._loss, rto_s),
            prefill_s=self._delay_s
            + token_s * self.problem.workload.prompt_tokens
            + retransmission_s(prompt_bytes, self._loss, rto_s),
        )


def evaluate(problem: Problem, placement: Placement) -> Breakdown:
    """Compute what `placement` costs now.

    Raises:
        Infeasible: it breaks a constraint, or a value that its cost needs is unknown; the reason names it.
    """
    check_feasible(problem, placement)
    by_name = {node.name: node for node in problem.nodes}
    tables = CostTables(problem, [by_name[name] for name in placement.nodes])
    return _sum_terms(tables, placement)


def _sum_terms(tables: CostTables, placement: Placement) -> Breakdown:
    problem, head = tables.problem, tables.index[placement.head]
    compute, prefill = float(tables.head_token_s[head]), float(tables.head_prefill_s[head])
    utilisation, privacy = float(tables.overload[head]), 0.0
    for stage in placement.stages:
        where = (tables.index[stage.node], stage.first_layer, stage.end_layer)
        compute += float(tables.stage_token_s[where])
        prefill += float(tables.stage_prefill_s[where])
        utilisation += float(tables.stage_utilisation[where])
        privacy += float(tables.stage_privacy[where])
    delay = transmission = retransmission = 0.0
    for (src, dst), boundary in zip(placement.hops, hop_boundaries(placement), strict=True):
        hop, pair = tables.hops(boundary), (tables.index[src], tables.index[dst])
        delay += float(hop.delay_s[pair])
        transmission += float(hop.transmission_s[pair])
        retransmission += float(hop.retransmission_s[pair])
        prefill += float(hop.prefill_s[pair])
    token_s = compute + delay + transmission + retransmission
    latency = token_s + prefill / problem.workload.generated_tokens
    weights = problem.weights
    return Breakdown(
        phi=weights.latency * latency + weights.utilisation * utilisation + weights.privacy * privacy,
        latency_s=latency,
        utilisation=utilisation,
        privacy=privacy,
        token_s=token_s,
        prefill_s=prefill,
        compute_s=compute,
        delay_s=delay,
        transmission_s=transmission,
        retransmission_s=retransmission,
    )


def hop_boundaries(placement: Placement) -> tuple[int, ...]:
    """Return, per hop, the layer boundary whose activation it carries (0: what the head sends)."""
    if len(placement.nodes) == 1:
        return ()
    on_head = placement.stages[0].node == placement.head
    return placement.cuts if on_head else (0, *placement.cuts)


def _between(values: Sequence[float]) -> Floats:
    """Return sums over [a, b) as a table [L+1, L+1]; 0 where b <= a."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    return np.asarray(np.maximum(np.triu(total[None, :] - total[:, None]), 0.0))


def _scale(per_layer: Floats, relative: Floats) -> Floats:
    """Multiply [N] by [L+1, L+1] into [N, L+1, L+1], infinity staying infinity."""
    known = np.where(np.isfinite(per_layer), per_layer, 0.0)
    scaled = known[:, None, None] * relative[None, :, :]
    scaled[~np.isfinite(per_layer)] = np.inf
    return np.asarray(scaled)
