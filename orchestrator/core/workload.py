"""What a fine-tuning round asks of a node and of its links, and how long that should take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.core.errors import InvalidValue
from orchestrator.core.model import ORCHESTRATOR, Measurement, Network, NodeState
from orchestrator.core.transfer import CONGESTION_CONTROLS, PathShape, transfer_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one round moves and computes, for each node that takes part; None or absent where it is unknown.

    `model_bytes` go down and `update_bytes` come up in every round; `data_bytes` (by node) go down once, and
    `base_bytes` of what is not trained, where only adapters are.
    `flops` are those of a round's training, `layer_passes` how often a layer is run in it (each costs a node
    its `layer_overhead_s`). `samples` is what a node trains on in a round, `makeup` the shares of labels or
    tokens in its data (any classes, the same number for all), `orchestrator_bps` the rate of the link that
    all transfers share.
    """

    model_bytes: int | None = None
    update_bytes: int | None = None
    data_bytes: Mapping[str, int] = field(default_factory=dict)
    flops: float | None = None
    layer_passes: int = 0
    base_bytes: int = 0
    samples: Mapping[str, float] = field(default_factory=dict)
    makeup: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    congestion_control: str = "bbr"
    orchestrator_bps: float | None = None

    def __post_init__(self) -> None:
        for name in ("model_bytes", "update_bytes", "flops", "orchestrator_bps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidValue(f"workload: {name} is {value}, must be above 0 (or None if unknown)")
        if self.base_bytes < 0:
            raise InvalidValue(f"workload: base_bytes is {self.base_bytes}, must not be negative")
        if self.congestion_control not in CONGESTION_CONTROLS:
            known = ", ".join(CONGESTION_CONTROLS)
            raise InvalidValue(
                f"workload: congestion_control is {self.congestion_control!r}; modelled are {known}"
            )
        if len({len(shares) for shares in self.makeup.values()}) > 1:
            raise InvalidValue("workload: makeup has different numbers of classes for different nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """How long a round should take a node, in parts; `data_s` is paid once, when the node is loaded."""

    down_s: float
    compute_s: float
    up_s: float
    data_s: float

    @property
    def round_s(self) -> float:
        """Return the seconds of a round: model down, training, update up."""
        return self.down_s + self.compute_s + self.up_s


def predict(
    name: str, state: NodeState | None, network: Network, workload: Workload
) -> tuple[Prediction | None, str]:
    """Predict a round of `name`; None with what is missing, or the prediction with how it was had."""
    if workload.model_bytes is None or workload.update_bytes is None:
        return None, "the bytes of a round are unknown"
    down, why_down = _shape(network, ORCHESTRATOR, name)
    up, why_up = _shape(network, name, ORCHESTRATOR)
    down, up = down or up, up or down
    if down is None or up is None:
        return None, why_down or why_up
    control = workload.congestion_control
    compute_s, note = _compute_s(name, state, workload)
    return Prediction(
        down_s=transfer_s(workload.model_bytes, down, control),
        compute_s=compute_s,
        up_s=transfer_s(workload.update_bytes, up, control),
        data_s=transfer_s(workload.base_bytes + workload.data_bytes.get(name, 0), down, control),
    ), note


def _compute_s(name: str, state: NodeState | None, workload: Workload) -> tuple[float, str]:
    if workload.flops is None:
        return 0.0, "the flops of a round are unknown: counted as none"
    if state is None or state.compute_flops is None:
        return 0.0, f"the compute power of {name} is unknown: counted as no compute time"
    overhead_s = workload.layer_passes * (state.layer_overhead_s or 0.0)
    return workload.flops / state.compute_flops + overhead_s, "from measured paths and compute"


def _shape(network: Network, src: str, dst: str) -> tuple[PathShape | None, str]:
    """Read a path as a connection meets it; unknown loss counts as none, unknown delay as none."""
    there, back = network.path(src, dst), network.path(dst, src)
    rate = _free(there.usable_bps, there.capacity_bps)
    if rate is None:
        return None, there.usable_bps.reason or f"the bandwidth from {src} to {dst} is unknown"
    ways = [path.delay_s.value for path in (there, back) if path.delay_s.value is not None]
    rtt_s = 2 * sum(ways) / len(ways) if ways else 0.0
    measured = there.usable_bps.source == "transfers"
    loss = 0.0 if measured else there.loss_ratio.value or 0.0
    return PathShape(rate_bps=rate, rtt_s=rtt_s, loss_ratio=loss), ""


def _free(available: Measurement, capacity: Measurement) -> float | None:
    """Return what is free of the path; a path that is full just now still gives a flow its share of it."""
    if available.value is None:
        return capacity.value if capacity.value else None
    least = 0.1 * (capacity.value or 0.0)
    return max(available.value, least) or None
