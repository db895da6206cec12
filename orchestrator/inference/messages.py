"""Events that the deployment engine takes and instructions that it gives.

Times are seconds on one monotonic clock of the driver's choosing; every event says when it happened.
A `route epoch` is the version of a placement; it only grows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.core.cost import CostWeights, Workload
from orchestrator.core.decisions import Decision
from orchestrator.core.errors import InvalidValue
from orchestrator.core.model import ModelGraph, Network, NodeState, Placement, Shard
from orchestrator.core.triggers import Hysteresis, Thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """What is deployed and under which rules; `Engine(spec)` runs it.

    `min_nodes` distinct nodes at least form the ring. `pinned_head` keeps the head on one node. `nodes`,
    where not empty, are the only ones that may be used.
    """

    deployment: str
    model: ModelGraph
    min_nodes: int = 1
    weights: CostWeights = field(default_factory=CostWeights)
    workload: Workload = field(default_factory=Workload)
    thresholds: Thresholds = field(default_factory=Thresholds)
    hysteresis: Hysteresis = field(default_factory=Hysteresis)
    pinned_head: str | None = None
    nodes: tuple[str, ...] = ()
    prepare_timeout_s: float = 60.0
    commit_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.min_nodes < 1:
            raise InvalidValue(
                f"deployment {self.deployment}: min_nodes is {self.min_nodes}, must be at least 1"
            )
        if self.min_nodes > len(self.model.layers) + 1:
            raise InvalidValue(
                f"deployment {self.deployment}: min_nodes is {self.min_nodes}, but a model of "
                f"{len(self.model.layers)} layers and a head fills at most {len(self.model.layers) + 1}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at `now_s`."""

    now_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployRequested(Event):
    """Begin: choose a placement on these nodes and this network."""

    nodes: tuple[NodeState, ...]
    network: Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """Go on with what an earlier process left: `placement` under `epoch`, or nothing that served yet.

    No route epoch above `last_epoch` was ever given to a node. `emptied` are nodes of the placement that hold
    their shards no more; `served` says whether it ever did; `reason` says why it is begun again.
    """

    nodes: tuple[NodeState, ...]
    network: Network
    placement: Placement | None
    epoch: int
    last_epoch: int
    emptied: frozenset[str]
    served: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentTaken(Event):
    """A monitoring cycle's view of nodes and network."""

    nodes: tuple[NodeState, ...]
    network: Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Event):
    """`node` is ready for `epoch` (answers PrepareShard)."""

    node: str
    epoch: int
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareFailed(Event):
    """`node` cannot take its shard of `epoch`, or did not answer."""

    node: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(Event):
    """`node` switched to `epoch` (answers CommitShard)."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitFailed(Event):
    """`node` did not switch to `epoch`."""

    node: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenObserved(Event):
    """The head gave a token `elapsed_s` after the one before it.

    A request's first token (`index` 0: its elapsed time is the prefill) and tokens after a replay do not
    count for the latency average of decoding.
    """

    epoch: int
    request: str
    index: int
    elapsed_s: float
    replayed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled(Event):
    """The ring of `epoch` does not answer its head."""

    epoch: int
    request: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost(Event):
    """`node` is gone: its connection closed or its heartbeats stopped."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRequest(Event):
    """A request tagged privacy=high came in; its layers may run on trusted nodes only."""

    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationRequested(Event):
    """The operator wants the placement reconsidered now: no cool-down, no margin, any better one is taken."""

    reason: str = "asked by the operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class UndeployRequested(Event):
    """Take the deployment down."""

    reason: str = "asked by the operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(Event):
    """Time passed; send one at least each second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """Something that the driver has to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareShard(Instruction):
    """Get `shard` ready on its node under `epoch`; answer Prepared or PrepareFailed.

    With `reuse` the node holds exactly these parameters already, so they need not be sent.
    """

    epoch: int
    shard: Shard
    reuse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitShard(Instruction):
    """Switch `node` to `epoch`; answer Committed or CommitFailed. The head's comes last."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortShard(Instruction):
    """Forget what was prepared on `node` under `epoch`; no answer is awaited."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RetireShard(Instruction):
    """Free `node`'s shards of `epoch` and older; no answer is awaited."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Instruction):
    """Keep and publish `decision`."""

    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class FailRequests(Instruction):
    """Running requests cannot go on (the head that held them is gone); tell their clients `reason`."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce(Instruction):
    """The deployment is now in `state`.

    `preparing` (no route yet), `serving`, `reconfiguring` (serving on the old route while the new one is made
    ready), `degraded` (no working route; a new one is sought), `failed` (could not be deployed), `retired`.
    `epoch` and `placement` are those that serve, None before the first; `last_epoch` is the highest that a
    node was given, or will be by the instructions that follow.
    """

    state: str
    reason: str
    epoch: int | None
    placement: Placement | None
    last_epoch: int
