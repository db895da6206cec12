"""What is simulated: links, nodes, the work, the orchestrator's own time, how well things are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from orchestrator.core.errors import InvalidValue
from orchestrator.core.transfer import CONGESTION_CONTROLS

FAULTS = ("lost", "back", "hung", "garbage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction of a link. `rate_bps` counts Ethernet frames, as configured links do."""

    name: str
    rate_bps: float
    delay_s: float
    loss_ratio: float = 0.0

    def __post_init__(self) -> None:
        if not (isfinite(self.rate_bps) and self.rate_bps > 0):
            raise InvalidValue(f"link {self.name}: rate_bps is {self.rate_bps}, must be above 0")
        if not (isfinite(self.delay_s) and self.delay_s >= 0):
            raise InvalidValue(f"link {self.name}: delay_s is {self.delay_s}, must be at least 0")
        if not 0 <= self.loss_ratio < 1:
            raise InvalidValue(f"link {self.name}: loss_ratio is {self.loss_ratio}, must be in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node: the links from the orchestrator to it and back, in order, and its device."""

    name: str
    down: tuple[str, ...]
    up: tuple[str, ...]
    compute_flops: float
    layer_overhead_s: float = 0.0
    power: float | None = None

    def __post_init__(self) -> None:
        if not self.down or not self.up:
            raise InvalidValue(f"node {self.name}: a path without links")
        if not (isfinite(self.compute_flops) and self.compute_flops > 0):
            raise InvalidValue(f"node {self.name}: compute_flops is {self.compute_flops}, must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A network with the orchestrator and its nodes, and the congestion control that all of them use.

    `used_before`: the connections have carried another job, so that they know their paths.
    """

    links: tuple[Link, ...]
    nodes: tuple[Node, ...]
    congestion_control: str = "bbr"
    used_before: bool = False

    def __post_init__(self) -> None:
        known = {link.name for link in self.links}
        for node in self.nodes:
            missing = [name for name in (*node.down, *node.up) if name not in known]
            if missing:
                raise InvalidValue(f"node {node.name}: there is no link {missing[0]}")
        if self.congestion_control not in CONGESTION_CONTROLS:
            raise InvalidValue(
                f"congestion control {self.congestion_control!r} is not modelled; "
                f"modelled are {', '.join(CONGESTION_CONTROLS)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one node has to do each round: `tokens` in `steps`, counted as `samples` when averaged."""

    data_bytes: int
    tokens: int
    steps: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is sent and computed. `model_bytes` go to a node, `update_bytes` come back each round.

    `parameters` run, `trained` of them change (None: all); with adapters, `base_bytes` go to a node once.
    `makeup` is what policies may know of the nodes' data (`core.workload.Workload.makeup`).
    """

    parameters: int
    layers: int
    model_bytes: int
    update_bytes: int
    tasks: Mapping[str, Task]
    makeup: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    trained: int | None = None
    base_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("parameters", "model_bytes", "update_bytes"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"work: {name} is {getattr(self, name)}, must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Orchestrator:
    """What the orchestrator's own work takes, in seconds: an aggregation, an evaluation, reading metrics."""

    aggregate_s: float = 0.0
    evaluate_s: float = 0.0
    metrics_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How well paths and devices are known: relative standard errors, and the packets of a loss figure.

    Paths are measured anew each time; what is stated of a device's compute power is wrong once for all.
    """

    delay_error: float = 0.03
    rate_error: float = 0.05
    compute_error: float = 0.0
    loss_packets: int = 2000

    def __post_init__(self) -> None:
        errors = (self.delay_error, self.rate_error, self.compute_error)
        if not all(0 <= error < 1 for error in errors) or self.loss_packets < 1:
            raise InvalidValue(f"measuring: errors must be in [0, 1), loss_packets at least 1: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that happens to `node` at `at_s`.

    `lost`: it is gone, which the orchestrator notices `noticed_s` later. `back`: it attaches again, empty.
    `hung`: from now on it answers nothing, until it is lost. `garbage`: its next update is not valid.
    """

    at_s: float
    node: str
    kind: str
    noticed_s: float = field(default=0.0)

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise InvalidValue(f"fault {self.kind!r} is unknown; known: {', '.join(FAULTS)}")
