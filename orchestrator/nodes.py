"""What the core needs to know of the nodes, from what the worker pool knows."""

from __future__ import annotations

from orchestrator.core.model import NodeState
from orchestrator.ports import NodeRecord


def state(record: NodeRecord) -> NodeState:
    """Turn a node's record into the core's value; what the node never told is unknown there."""
    profile = record.profile
    return NodeState(
        name=record.node,
        address=record.address,
        port=record.port,
        alive=record.alive,
        trusted=record.trusted,
        emulated=bool(profile.get("emulated", False)),
        power=profile.get("power"),
        compute_flops=profile.get("compute_flops"),
        layer_overhead_s=profile.get("layer_overhead_s"),
        memory_bytes=profile.get("memory_bytes"),
        cpu_utilisation=record.cpu_utilisation,
    )
