"""Read a node's five criteria off what was measured (Pekel 2025, section III-C)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

from orchestrator.core.model import ORCHESTRATOR, Measurement, Network, NodeState, PathMetrics
from orchestrator.core.scoring import Criteria

Read = Callable[[PathMetrics], Measurement]


def criteria_of(name: str, node: NodeState | None, network: Network, time_s: float | None) -> Criteria:
    """Collect what `name` is scored on, from both directions of its path to the orchestrator.

    Bandwidth is the smaller direction's capacity less the traffic of others, not what is free of it: at the
    end of a round what is in use is mostly the round's own transfer, and a node must not be punished for
    that. Where others' traffic is not told apart it is the capacity. Delay is the mean of the directions,
    loss the larger. A direction that is unknown is left out; both unknown is unknown.
    """
    paths = (network.path(ORCHESTRATOR, name), network.path(name, ORCHESTRATOR))
    notes: dict[str, str] = {}
    compute = node.compute_flops if node is not None else None
    if compute is None:
        notes["compute"] = f"the compute power of {name} is unknown"
    if time_s is None:
        notes["time"] = f"{name} reported no time"
    bandwidth = _combine("bandwidth", paths, _bandwidth, min, notes)
    if bandwidth is not None:
        notes["bandwidth"] = _basis(paths)
    return Criteria(
        node=name,
        compute=compute,
        bandwidth=bandwidth,
        delay=_combine("delay", paths, lambda path: path.delay_s, fmean, notes),
        loss=_combine("loss", paths, lambda path: path.loss_ratio, max, notes),
        time=time_s,
        notes=notes,
    )


def criteria_now(
    nodes: Iterable[NodeState], network: Network, times_s: Mapping[str, float | None]
) -> tuple[Criteria, ...]:
    """Collect the criteria of all `nodes`; `times_s` holds what is known of their training or round time."""
    return tuple(criteria_of(node.name, node, network, times_s.get(node.name)) for node in nodes)


def _bandwidth(path: PathMetrics) -> Measurement:
    found = (path.available_to_own_bps, path.capacity_bps, path.available_bps)
    return next((measurement for measurement in found if measurement.value is not None), path.capacity_bps)


def _basis(paths: tuple[PathMetrics, ...]) -> str:
    """Say what the bandwidth of the smaller direction is."""
    known = [path for path in paths if _bandwidth(path).value is not None]
    path = min(known, key=lambda path: _bandwidth(path).value or 0.0)
    if path.available_to_own_bps.value is not None:
        return f"{path.usable_basis}, {path.src} to {path.dst}"
    what = "capacity" if path.capacity_bps.value is not None else "unused"
    return f"{what}, {path.src} to {path.dst}; {path.available_to_own_bps.reason}"


def _combine(
    name: str,
    paths: tuple[PathMetrics, ...],
    read: Read,
    combine: Callable[[list[float]], float],
    notes: dict[str, str],
) -> float | None:
    measurements = [read(path) for path in paths]
    values = [measurement.value for measurement in measurements if measurement.value is not None]
    if values:
        return combine(values)
    notes[name] = measurements[0].reason or "unknown"
    return None
