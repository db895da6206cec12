"""Events that the fine-tuning engine takes and instructions that it gives.

Tensors never pass through here: parameters are named by their version, updates by (node, epoch). Times are
seconds on one monotonic clock of the driver's choosing; every event says when it happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.core.decisions import Decision
from orchestrator.core.energy import Energy, PowerProfile
from orchestrator.core.errors import InvalidValue
from orchestrator.core.model import Network, NodeState
from orchestrator.core.scoring import Weights
from orchestrator.core.selection import PolicyOptions
from orchestrator.core.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a fine-tuning job is (Pekel 2025, Algorithm 1); `Engine(spec, rng)` runs it.

    `left_out` are those that are not part of it although they might have been, each with the reason.
    `rejoin`: may a node that was lost or hung take part again once it is back. `invalid_limit`: after so
    many invalid answers in a row a node is left out. `eliminate` needs N > T > 1 (N nodes, T epochs).
    `power` is what the nodes' devices draw.
    """

    job: str
    nodes: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    epochs: int
    policy: str = "eliminate"
    weights: Weights = field(default_factory=Weights)
    score: str = "euclidean"
    time_criterion: str = "round_s"
    outer_learning_rate: float = 1.0
    round_timeout_s: float = 180.0
    load_timeout_s: float = 180.0
    sync_timeout_s: float = 180.0
    metrics_timeout_s: float = 10.0
    rejoin: bool = True
    invalid_limit: int = 2
    options: PolicyOptions = field(default_factory=PolicyOptions)
    power: PowerProfile = field(default_factory=PowerProfile)

    def __post_init__(self) -> None:
        if not self.nodes:
            raise InvalidValue(f"job {self.job}: no nodes; enrol at least one")
        if len(set(self.nodes)) < len(self.nodes):
            raise InvalidValue(f"job {self.job}: a node is named twice in {', '.join(self.nodes)}")
        if self.epochs < 1:
            raise InvalidValue(f"job {self.job}: epochs is {self.epochs}, must be at least 1")
        if self.time_criterion not in ("train_s", "round_s"):
            raise InvalidValue(
                f"job {self.job}: time_criterion is {self.time_criterion!r}; known: train_s, round_s"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at `now_s`."""

    now_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted(Event):
    """The driver is ready: version 0 of the parameters and the partitions exist; a round asks `workload`."""

    workload: Workload = field(default_factory=Workload)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLoaded(Event):
    """`node` confirmed `version` of the model and its data (answers LoadNode)."""

    node: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateArrived(Event):
    """`node` answered StartRound for `epoch`; the driver holds the delta until Accept or Discard.

    `train_s` is what the node reports for its compute, `round_s` what the orchestrator saw from sending to
    received. An answer that failed validation has `valid` False and the `reason`.
    """

    node: str
    epoch: int
    valid: bool = True
    reason: str | None = None
    train_s: float | None = None
    round_s: float | None = None
    real_s: float | None = None
    late_s: float | None = None
    samples: int = 0
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailed(Event):
    """A LoadNode, StartRound or SyncNode to a living node failed; `request` is `load`, `round` or `sync`."""

    node: str
    request: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost(Event):
    """`node` is gone: its connection closed or its heartbeats stopped."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBack(Event):
    """A lost `node` is attached again, with nothing loaded."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregated(Event):
    """`version` of the parameters exists (answers Aggregate)."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Event):
    """The held-out `loss` (nats per token) of `version` (answers Evaluate)."""

    version: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsTaken(Event):
    """The nodes and the network as measured now (answers TakeMetrics for `epoch`, -1 before the first)."""

    epoch: int
    nodes: tuple[NodeState, ...]
    network: Network


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSynced(Event):
    """`node` confirmed `version` (answers SyncNode)."""

    node: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(Event):
    """Time passed; send one at least each second while the job runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverFailed(Event):
    """Something at the orchestrator itself failed (evaluation, aggregation); the job cannot go on."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(Event):
    """The user wants the job ended."""

    reason: str = "cancelled by the user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """Something that the driver has to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadNode(Instruction):
    """Send `version` of the model, and the node's data if `data`; answer NodeLoaded or RequestFailed."""

    node: str
    version: int
    data: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRound(Instruction):
    """Have `node` train `epoch` from `version` (send it if the node's is older); answer UpdateArrived."""

    node: str
    epoch: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept(Instruction):
    """Add the held delta of (node, epoch) times `weight` to the epoch's running sum, then forget it."""

    node: str
    epoch: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard(Instruction):
    """Forget the held delta of (node, epoch), if there is one."""

    node: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """A node's share of an aggregate: weight / sum of weights."""

    node: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate(Instruction):
    """Make `new_version` = `base_version` + outer_learning_rate * weighted mean delta; answer Aggregated.

    The weighted sum was accumulated by Accept; `contributions` are all that went into it.
    """

    epoch: int
    base_version: int
    new_version: int
    outer_learning_rate: float
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate(Instruction):
    """Measure the held-out loss of `version`; may overlap the next round; answer Evaluated."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeMetrics(Instruction):
    """Read nodes and network now; answer MetricsTaken. `epoch` is -1 before the first round."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncNode(Instruction):
    """Send `version` to `node` in the background; answer NodeSynced or RequestFailed."""

    node: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Instruction):
    """Keep and publish `decision`."""

    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """One finished epoch. `loss` is None until its evaluation arrives (a later report repeats the epoch).

    `late` were asked and not waited for; `readmitted` take part (again) from the next epoch on.
    """

    epoch: int
    version: int
    active: tuple[str, ...]
    contributed: tuple[str, ...]
    eliminated: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    started_at_s: float
    seconds: float
    loss: float | None
    node_train_s: Mapping[str, float | None] = field(default_factory=dict)
    node_round_s: Mapping[str, float | None] = field(default_factory=dict)
    node_late_s: Mapping[str, float | None] = field(default_factory=dict)
    node_loss: Mapping[str, float | None] = field(default_factory=dict)
    late: tuple[str, ...] = ()
    readmitted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportEpoch(Instruction):
    """Keep and publish an epoch's figures; a second one for the same epoch replaces the first."""

    report: EpochReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A finished job. `completion_s`: from sending model and data until the final loss is known.

    `energy` is what the job cost each node until it was settled, `energy_total` all of them.
    """

    policy: str
    epochs: int
    start_loss: float | None
    final_loss: float
    final_version: int
    completion_s: float
    settle_s: float
    settled: tuple[str, ...]
    unsettled: Mapping[str, str]
    energy: Mapping[str, Energy] = field(default_factory=dict)
    energy_total: Energy = field(default_factory=Energy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce(Instruction):
    """The job is now in `state`: `loading`, `training`, `settling`, `completed`, `failed` or `cancelled`."""

    state: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish(Instruction):
    """The job is complete and settled; end it on the nodes (`train.end`)."""

    summary: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail(Instruction):
    """The job failed or was cancelled; drop held deltas, end it on the nodes."""

    reason: str
    cancelled: bool = False
