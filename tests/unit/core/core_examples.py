"""Small networks, nodes and models for tests of decisions."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.cost import Problem, Workload
from orchestrator.core.model import (
    HeadCost,
    LayerCost,
    Measurement,
    ModelGraph,
    Network,
    NodeState,
    PathMetrics,
    network,
    unknown,
)


def known(value: float) -> Measurement:
    return Measurement(value=value, raw=value, samples=10, age_s=0.1, source="probe")


def a_path(
    src: str,
    dst: str,
    *,
    delay_s: float = 0.02,
    loss_ratio: float = 0.0,
    available_bps: float = 1e7,
    capacity_bps: float | None = None,
    available_to_own_bps: float | None = None,
) -> PathMetrics:
    told = unknown("nothing is declared") if available_to_own_bps is None else known(available_to_own_bps)
    return PathMetrics(
        src=src,
        dst=dst,
        delay_s=known(delay_s),
        loss_ratio=known(loss_ratio),
        capacity_bps=known(capacity_bps if capacity_bps is not None else available_bps),
        available_bps=known(available_bps),
        available_to_own_bps=told,
    )


def a_network(
    names: list[str], *, access_s: Mapping[str, float] | None = None, taken_at_s: float = 0.0, **values: float
) -> Network:
    """Join all names; the delay of a path is the sum of its ends' access delays where those are given."""
    access = access_s or {}
    paths = []
    for src in names:
        for dst in names:
            if src != dst:
                delay = access.get(src, 0.01) + access.get(dst, 0.01)
                paths.append(a_path(src, dst, delay_s=delay, **values))
    return network(taken_at_s, paths)


def a_node(name: str, **values: object) -> NodeState:
    defaults: dict[str, object] = {
        "address": "198.18.1.1",
        "port": 7001,
        "compute_flops": 1e9,
        "layer_overhead_s": 0.001,
        "memory_bytes": 1_000_000,
        "cpu_utilisation": 0.1,
    }
    return NodeState(name=name, **{**defaults, **values})  # type: ignore[arg-type]


def a_model(layers: int = 8, *, critical: tuple[int, ...] = (), sensitivity: float = 0.0) -> ModelGraph:
    return ModelGraph(
        name="example",
        digest="d",
        head=HeadCost(parameter_bytes=100_000, flops_per_token=50_000.0, activation_bytes=256),
        layers=tuple(
            LayerCost(
                parameter_bytes=200_000,
                flops_per_token=100_000.0,
                kv_bytes_per_token=100,
                activation_bytes=256,
                privacy_critical=index in critical,
                sensitivity=sensitivity,
            )
            for index in range(layers)
        ),
    )


def a_problem(**values: object) -> Problem:
    nodes = tuple(
        a_node(f"h{i}", trusted=i <= 2, compute_flops=2e8 * i, memory_bytes=1_000_000) for i in range(1, 7)
    )
    defaults: dict[str, object] = {
        "model": a_model(),
        "nodes": nodes,
        "network": a_network([node.name for node in nodes], access_s={"h2": 0.05, "h3": 0.2, "h5": 0.005}),
        "workload": Workload(prompt_tokens=16, generated_tokens=64, context_tokens=128),
        "min_nodes": 3,
    }
    return Problem(**{**defaults, **values})  # type: ignore[arg-type]
