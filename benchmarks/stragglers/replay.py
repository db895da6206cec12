"""Let a simulated job see what the controller measured in the emulated one: so only times are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from orchestrator.core.model import (
    ORCHESTRATOR,
    Measurement,
    Network,
    NodeState,
    PathMetrics,
    unknown,
)
from orchestrator.simulation import World
from orchestrator.simulation.measuring import node_states

Seen = dict[str, dict[str, float | None]]
_READ = ("bandwidth", "delay", "loss")


def seen(decisions: Sequence[Mapping[str, Any]]) -> list[Seen]:
    """Return what each epoch's scores stood on, by node; what an epoch did not see is as it was before."""
    found: list[Seen] = []
    latest: Seen = {}
    for decision in decisions:
        if decision["kind"] != "eliminate":
            continue
        for score in decision["scores"]:
            criteria = score["criteria"]
            latest[score["node"]] = {name: criteria[name]["value"] for name in _READ}
        found.append({node: dict(values) for node, values in latest.items()})
    return found


class Replayed:
    """An Observer that answers what was seen after each epoch; before the first, what the first saw."""

    def __init__(self, world: World, epochs: Sequence[Seen]) -> None:
        self._nodes = world.nodes
        self._epochs = epochs
        self._asked = 0

    def measure(self, now_s: float, delays_s: Mapping[tuple[str, str], float]) -> Network:
        """Return the paths as they were measured on the testbed."""
        now = self._epochs[min(max(self._asked - 1, 0), len(self._epochs) - 1)]
        self._asked += 1
        pairs = [
            pair for node in now for pair in ((ORCHESTRATOR, node), (node, ORCHESTRATOR)) if pair in delays_s
        ]
        paths = {pair: _path(pair, now[pair[0] if pair[1] == ORCHESTRATOR else pair[1]]) for pair in pairs}
        return Network(taken_at_s=now_s, paths=paths)

    def states(self, gone: Set[str]) -> tuple[NodeState, ...]:
        """Return the nodes' devices as the scenario describes them."""
        return node_states(self._nodes, gone)


def _path(pair: tuple[str, str], values: Mapping[str, float | None]) -> PathMetrics:
    rate = _measurement(values["bandwidth"])
    return PathMetrics(
        src=pair[0],
        dst=pair[1],
        delay_s=_measurement(values["delay"]),
        loss_ratio=_measurement(values["loss"]),
        capacity_bps=rate,
        available_bps=rate,
    )


def _measurement(value: float | None) -> Measurement:
    if value is None:
        return unknown("not measured on the testbed")
    return Measurement(value=value, raw=value, samples=1, source="measured on the testbed")
