"""What the decisions are about: nodes, paths, models and placements, with units in the names.

Unknown is None with a reason, never zero or infinity; what an unknown value means is up to the policy
that reads it. Nodes are named by strings; the orchestrator's own name is `orch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite

from orchestrator.core.errors import InvalidValue

ORCHESTRATOR = "orch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measured value in the unit that its holder's field name says.

    `value` is smoothed, `raw` the last sample, `low` and `high` a 95 % interval where there is one,
    `samples` how many stand behind `value`, `age_s` how old the newest is, `source` how it was had.
    """

    value: float | None
    reason: str | None = None
    raw: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    age_s: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise InvalidValue("a measurement without a value needs a reason")
        if self.value is not None and not isfinite(self.value):
            raise InvalidValue(
                f"a measured value must be finite, is {self.value}; unknown is None with a reason"
            )


def unknown(reason: str) -> Measurement:
    """Make an unknown measurement with its `reason`."""
    return Measurement(value=None, reason=reason)


_NOT_TOLD = unknown("own traffic is not told from that of others")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathMetrics:
    """The measured path from node `src` to node `dst`, one direction.

    `available_bps` is what is unused; `available_to_own_bps` what the orchestrator's own transfers have
    between them, running or not: capacity less the traffic of others.
    """

    src: str
    dst: str
    delay_s: Measurement
    loss_ratio: Measurement
    capacity_bps: Measurement
    available_bps: Measurement
    available_to_own_bps: Measurement = _NOT_TOLD
    links: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("delay_s", "loss_ratio", "capacity_bps", "available_bps", "available_to_own_bps"):
            value = getattr(self, name).value
            if value is not None and value < 0:
                raise InvalidValue(f"path {self.src} to {self.dst}: {name} is {value:g}, must be at least 0")
        loss = self.loss_ratio.value
        if loss is not None and loss > 1:
            raise InvalidValue(f"path {self.src} to {self.dst}: loss_ratio is {loss:g}, must be at most 1")

    @property
    def usable_bps(self) -> Measurement:
        """Return what own transfers can have, so that a node in use does not look slow for being in use.

        Where own traffic is not told from that of others, it is what is unused.
        """
        return self.available_bps if self.available_to_own_bps.value is None else self.available_to_own_bps

    @property
    def usable_basis(self) -> str:
        """Say what `usable_bps` is, for a record."""
        if self.available_to_own_bps.value is not None:
            return "capacity less the traffic of others"
        return f"unused, own traffic counted as others': {self.available_to_own_bps.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The measured paths between nodes at one time; `paths` is keyed by (src, dst)."""

    taken_at_s: float
    paths: Mapping[tuple[str, str], PathMetrics] = field(default_factory=dict)

    def path(self, src: str, dst: str) -> PathMetrics:
        """Return the path, all unknown with a reason where it was never measured."""
        found = self.paths.get((src, dst))
        return found if found is not None else unmeasured(src, dst)


def network(taken_at_s: float, paths: Iterable[PathMetrics]) -> Network:
    """Build a snapshot from `paths`."""
    return Network(taken_at_s=taken_at_s, paths={(path.src, path.dst): path for path in paths})


def unmeasured(src: str, dst: str) -> PathMetrics:
    """Describe a path of which nothing is known."""
    nothing = unknown(f"the path {src} to {dst} has not been measured")
    return PathMetrics(
        src=src, dst=dst, delay_s=nothing, loss_ratio=nothing, capacity_bps=nothing, available_bps=nothing
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One node as the orchestrator knows it now (Koch 2025, Eq. 1).

    `decode_layer_s` and `prefill_layer_s_per_token` are measured on the device for the model in question
    (one token through one layer); where they are None, `compute_flops` and `layer_overhead_s` estimate them.
    `memory_bytes` is what the node may hold of a model; `reserved_bytes` of it is taken by others.
    """

    name: str
    address: str | None = None
    port: int | None = None
    alive: bool = True
    trusted: bool = False
    draining: bool = False
    emulated: bool = False
    power: float | None = None
    compute_flops: float | None = None
    layer_overhead_s: float | None = None
    decode_layer_s: float | None = None
    prefill_layer_s_per_token: float | None = None
    memory_bytes: int | None = None
    reserved_bytes: int = 0
    cpu_utilisation: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidValue("a node needs a name")
        _require_positive(
            self, f"node {self.name}", "compute_flops", "decode_layer_s", "prefill_layer_s_per_token"
        )
        _require_not_negative(self, f"node {self.name}", "layer_overhead_s", "memory_bytes", "reserved_bytes")
        _require_not_negative(self, f"node {self.name}", "cpu_utilisation", "power")

    @property
    def usable(self) -> bool:
        """Say whether new work may be placed here."""
        return self.alive and not self.draining


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one layer costs. `activation_bytes` leave it per token; `sensitivity` weighs its exposure (P)."""

    parameter_bytes: int
    flops_per_token: float
    kv_bytes_per_token: int
    activation_bytes: int
    privacy_critical: bool = False
    sensitivity: float = 0.0

    def __post_init__(self) -> None:
        _require_not_negative(self, "layer", "parameter_bytes", "flops_per_token", "kv_bytes_per_token")
        _require_not_negative(self, "layer", "activation_bytes", "sensitivity")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadCost:
    """What the head costs: tokeniser, embedding, final norm, LM head, sampler. Trusted nodes only."""

    parameter_bytes: int
    flops_per_token: float
    activation_bytes: int

    def __post_init__(self) -> None:
        _require_not_negative(self, "head", "parameter_bytes", "flops_per_token", "activation_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGraph:
    """A model as a chain of layers between the two ends of its head."""

    name: str
    digest: str
    head: HeadCost
    layers: tuple[LayerCost, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise InvalidValue(f"model {self.name} has no layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Layers [first_layer, end_layer) on one node."""

    node: str
    first_layer: int
    end_layer: int

    def __post_init__(self) -> None:
        if not 0 <= self.first_layer < self.end_layer:
            raise InvalidValue(
                f"stage on {self.node}: layers [{self.first_layer}, {self.end_layer}) are empty or negative"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What one node of a ring holds and whom it talks to.

    `roles` is `("head",)`, `("stage",)` or `("head", "stage")`; a head without layers has first_layer =
    end_layer = 0. `previous` and `next` are the neighbours in the ring (the node itself if it is alone) of
    `ring_nodes`.
    """

    node: str
    roles: tuple[str, ...]
    first_layer: int
    end_layer: int
    previous: str
    next: str
    ring_nodes: int = 1

    def holds_as(self, other: Shard) -> bool:
        """Say whether `other` holds the same parameters on the same node."""
        return (self.node, self.roles, self.first_layer, self.end_layer) == (
            other.node,
            other.roles,
            other.first_layer,
            other.end_layer,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Who runs what: the head's node and the stages in the order of their layers.

    A node runs at most one stage; only the first stage may sit on the head's node, because there rows go to
    it without a socket and a worker has one neighbour on each side (docs/wire_protocol.md).
    """

    head: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise InvalidValue("a placement needs at least one stage")
        expected = 0
        for stage in self.stages:
            if stage.first_layer != expected:
                raise InvalidValue(
                    f"stage on {stage.node} starts at layer {stage.first_layer}, must start at {expected}"
                )
            expected = stage.end_layer
        names = [stage.node for stage in self.stages]
        if len(set(names)) < len(names):
            raise InvalidValue(f"a node runs two stages: {', '.join(names)}")
        if self.head in names[1:]:
            raise InvalidValue(f"the head's node {self.head} may run the first stage only, runs a later one")

    @property
    def layer_count(self) -> int:
        """Return how many layers the placement covers."""
        return self.stages[-1].end_layer

    @property
    def cuts(self) -> tuple[int, ...]:
        """Return where the layers are cut: the end of each stage, the last one included."""
        return tuple(stage.end_layer for stage in self.stages)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the distinct nodes in ring order, the head first."""
        names = tuple(stage.node for stage in self.stages)
        return names if names[0] == self.head else (self.head, *names)

    @property
    def hops(self) -> tuple[tuple[str, str], ...]:
        """Return the ring's hops (src, dst), the closing one included; none if one node has it all."""
        nodes = self.nodes
        return () if len(nodes) == 1 else tuple(zip(nodes, (*nodes[1:], nodes[0]), strict=True))

    def shards(self) -> tuple[Shard, ...]:
        """Return what each node holds, in ring order, the head first."""
        nodes = self.nodes
        stages = {stage.node: stage for stage in self.stages}
        return tuple(self._shard(index, stages.get(node)) for index, node in enumerate(nodes))

    def _shard(self, index: int, stage: Stage | None) -> Shard:
        nodes = self.nodes
        roles = (("head",) if index == 0 else ()) + (("stage",) if stage else ())
        return Shard(
            node=nodes[index],
            roles=roles,
            first_layer=stage.first_layer if stage else 0,
            end_layer=stage.end_layer if stage else 0,
            previous=nodes[index - 1],
            next=nodes[(index + 1) % len(nodes)],
            ring_nodes=len(nodes),
        )

    def describe(self) -> str:
        """Write the placement in one line, as in `head h1; h1[0:3] h4[3:8]`."""
        stages = " ".join(f"{stage.node}[{stage.first_layer}:{stage.end_layer}]" for stage in self.stages)
        return f"head {self.head}; {stages}"


def _require_positive(holder: object, what: str, *names: str) -> None:
    for name in names:
        value = getattr(holder, name)
        if value is not None and not (isfinite(value) and value > 0):
            raise InvalidValue(f"{what}: {name} is {value}, must be finite and above 0 (or None if unknown)")


def _require_not_negative(holder: object, what: str, *names: str) -> None:
    for name in names:
        value = getattr(holder, name)
        if value is not None and not (isfinite(value) and value >= 0):
            raise InvalidValue(
                f"{what}: {name} is {value}, must be finite and at least 0 (or None if unknown)"
            )
