"""What the deployment engine remembers: the route that serves and the change in progress."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from orchestrator.core.jsonable import Json
from orchestrator.core.model import Network, NodeState, Placement


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
