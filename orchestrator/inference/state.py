"""What the deployment engine remembers: the route that serves and the change in progress."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.core.cost import Problem
from orchestrator.core.decisions import Crossing
from orchestrator.core.jsonable import Json
from orchestrator.core.model import Network, NodeState, Placement, Shard
from orchestrator.core.triggers import NODE_LOSS, PRIVACY, Ewma, crossings
from orchestrator.inference.messages import DeploymentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A placement under its route epoch."""

    epoch: int
    placement: Placement


class Step(Enum):
    """How far a change has come."""

    PREPARING = "preparing"
    COMMITTING = "committing"
    SWITCHING = "switching"


@dataclass(slots=True, kw_only=True)
class Change:
    """A new route in the making; nothing has changed for requests until its head has committed."""

    route: Route
    cause: str
    began_at_s: float
    since_s: float
    waiting: set[str]
    step: Step = Step.PREPARING

    @property
    def head(self) -> str:
        """Return the node of the head."""
        return self.route.placement.head


def describe_route(placement: Placement, nodes: Iterable[NodeState], network: Network) -> dict[str, Json]:
    """Give the measured values along a placement's ring, for a decision record."""
    states = {node.name: node for node in nodes}
    hops: list[Json] = []
    for src, dst in placement.hops:
        path = network.path(src, dst)
        hops.append(
            {
                "src": src,
                "dst": dst,
                "delay_s": path.delay_s.value,
                "loss_ratio": path.loss_ratio.value,
                "available_bps": path.available_bps.value,
                "available_to_own_bps": path.available_to_own_bps.value,
                "bandwidth_basis": path.usable_basis,
            }
        )
    used: dict[str, Json] = {
        name: states[name].cpu_utilisation if name in states else None for name in placement.nodes
    }
    return {"placement": placement.describe(), "hops": hops, "cpu_utilisation": used}


@dataclass(slots=True, kw_only=True)
class DeploymentState:
    """A deployment as its engine and the parts of it see it.

    `broken` says why the route serves no more; `emptied` are nodes of the route that hold its shard no more
    (retired, or lost and perhaps back, empty); `refused` says until when those that could not take their
    shard are left out; `resuming`: nothing has served since an earlier process left the route.
    """

    spec: DeploymentSpec
    announced: str = "new"
    nodes: tuple[NodeState, ...] = ()
    network: Network = field(default_factory=lambda: Network(taken_at_s=0.0))
    route: Route | None = None
    broken: str | None = None
    change: Change | None = None
    last_epoch: int = 0
    attempts: int = 0
    served: bool = False
    changed_at_s: float | None = None
    latency: Ewma = field(default_factory=Ewma)
    private: bool = False
    resuming: bool = False
    emptied: set[str] = field(default_factory=set)
    refused: dict[str, float] = field(default_factory=dict)

    def node_names(self) -> list[Json]:
        """Name the nodes that are known now."""
        return [node.name for node in self.nodes]

    def problem(self, avoid: frozenset[str] = frozenset(), *, keep_stages: bool = True) -> Problem:
        """State what a placement has to meet now; without `keep_stages` only the head's shard is held."""
        allowed = set(self.spec.nodes)
        nodes = tuple(
            node
            for node in self.nodes
            if (not allowed or node.name in allowed)
            and node.name not in self.refused
            and node.name not in avoid
        )
        return Problem(
            model=self.spec.model,
            nodes=nodes,
            network=self.network,
            weights=self.spec.weights,
            workload=self.spec.workload,
            utilisation_limit=self.spec.thresholds.utilisation,
            min_nodes=self.spec.min_nodes,
            all_trusted=self.private,
            pinned_head=self.spec.pinned_head or self.living_head(),
            held={node: shard for node, shard in self.held().items() if keep_stages or "head" in shard.roles},
        )

    def living_head(self) -> str | None:
        """Return the head of the route, None if it is not there."""
        if self.route is None:
            return None
        head = self.route.placement.head
        return head if self.is_alive(head) else None

    def held(self) -> dict[str, Shard]:
        """Return the shards that living nodes of the route hold."""
        if self.route is None:
            return {}
        shards = self.route.placement.shards()
        return {
            shard.node: shard
            for shard in shards
            if self.is_alive(shard.node) and shard.node not in self.emptied
        }

    def as_left(self) -> Placement | None:
        """Return the placement that an earlier process left, as long as its nodes can still have it."""
        if not self.resuming or self.route is None:
            return None
        placement = self.route.placement
        if placement.layer_count != len(self.spec.model.layers):
            return None
        hindered = any(crossing.trigger in (NODE_LOSS, PRIVACY) for crossing in self.crossings(self.route))
        refused = any(name in self.refused for name in placement.nodes)
        head = next((node for node in self.nodes if node.name == placement.head), None)
        sound = head is not None and head.trusted and not hindered and not refused
        return placement if sound else None

    def is_alive(self, name: str) -> bool:
        """Say whether a node is there."""
        return any(node.name == name and node.alive for node in self.nodes)

    def crossings(self, route: Route) -> tuple[Crossing, ...]:
        """Return the thresholds that `route` crosses now."""
        return crossings(
            route.placement,
            self.nodes,
            self.network,
            self.latency.value,
            self.spec.thresholds,
            private=self.private,
        )
