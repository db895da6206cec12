"""What the fine-tuning engine remembers: nodes and the epoch in progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import isfinite

from orchestrator.core.selection import Choice, RoundPlan
from orchestrator.finetune.messages import EpochReport, JobSpec, MetricsTaken, UpdateArrived

ELIMINATED = "eliminated"
UNSELECTED = "not selected"
BEFORE = -1
"""The epoch of the metrics that are taken before the first round."""


class Phase(Enum):
    """Where the job stands."""

    NEW = "new"
    STARTING = "starting"
    ROUND = "round"
    CLOSING = "closing"
    SETTLING = "settling"
    ENDED = "ended"


class Health(Enum):
    """Where a node stands, apart from whether it takes part."""

    EMPTY = "empty"
    LOADING = "loading"
    READY = "ready"
    TRAINING = "training"
    SILENT = "silent"
    LOST = "lost"


@dataclass(slots=True, kw_only=True)
class Node:
    """What the engine knows of a node. `out` says why it takes no part, None if it does.

    `has_data`: it was sent its data once, and is kept up to date from then on. `compute_s` and `transfer_s`
    are what it has spent on the job so far.
    """

    name: str
    health: Health = Health.EMPTY
    has_data: bool = False
    compute_s: float = 0.0
    transfer_s: float = 0.0
    out: str | None = None
    version: int = -1
    since_s: float = 0.0
    trains_epoch: int = -1
    trains_version: int = -1
    syncing_since_s: float | None = None
    sync_failures: int = 0
    sync_reason: str = ""
    strikes: int = 0

    @property
    def is_spare(self) -> bool:
        """Say whether the node was eliminated or never selected and could train now."""
        ready = self.health is Health.READY
        return (self.out == ELIMINATED and ready) or (self.out == UNSELECTED and self.is_free)

    @property
    def is_free(self) -> bool:
        """Say whether the node could begin a round now."""
        return self.health in (Health.READY, Health.EMPTY)

    @property
    def is_busy(self) -> bool:
        """Say whether the node is at something that will end by itself or by its deadline."""
        return self.health in (Health.LOADING, Health.TRAINING)

    @property
    def absence(self) -> str:
        """Say why the node does not hold the newest version."""
        if self.health is Health.LOST:
            return "lost"
        return self.sync_reason or self.out or f"still {self.health.value}"

    def has(self, version: int) -> bool:
        """Say whether the node is there and confirmed `version`."""
        return self.version == version and self.health is Health.READY


@dataclass(slots=True, kw_only=True)
class Round:
    """The epoch in progress: whose answer is awaited, what came, who failed and why, who was not waited for.

    `answered_s` and `load_s` count from the round's beginning, as does `asked_after_s`, when the policy was
    last asked whether the round may close.
    """

    epoch: int
    started_at_s: float
    active: tuple[str, ...]
    waiting: set[str]
    plan: RoundPlan = field(default_factory=lambda: RoundPlan(participants=(), reason=""))
    predicted_s: Mapping[str, float] = field(default_factory=dict)
    load_s: dict[str, float] = field(default_factory=dict)
    answered_s: dict[str, float] = field(default_factory=dict)
    late: tuple[str, ...] = ()
    asked_after_s: float = 0.0
    updates: dict[str, UpdateArrived] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    closed_at_s: float = 0.0
    aggregated: bool = False
    metrics: MetricsTaken | None = None


def _no_round() -> Round:
    return Round(epoch=0, started_at_s=0.0, active=(), waiting=set())


@dataclass(slots=True, kw_only=True)
class JobState:
    """A job as its engine and the parts of it see it.

    `completed_at_s` is when the final loss was known; `elapsed_s` what had passed before it was resumed;
    `measuring_since_s` when metrics were last asked for. `reports` and `losses` are kept by version.
    """

    spec: JobSpec
    nodes: dict[str, Node]
    phase: Phase = Phase.NEW
    round: Round = field(default_factory=_no_round)
    version: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    reports: dict[int, EpochReport] = field(default_factory=dict)
    started_at_s: float = 0.0
    elapsed_s: float = 0.0
    completed_at_s: float | None = None
    measuring_since_s: float = 0.0

    @property
    def ended(self) -> bool:
        """Say whether the job is over."""
        return self.phase is Phase.ENDED

    @property
    def settling(self) -> bool:
        """Say whether all epochs are done and nodes are brought to the last version."""
        return self.phase is Phase.SETTLING

    def free(self) -> list[Node]:
        """List those that take part and could begin a round now."""
        return [node for node in self.nodes.values() if node.out is None and node.is_free]

    def busy(self) -> list[Node]:
        """List those that take part and are at something."""
        return [node for node in self.nodes.values() if node.out is None and node.is_busy]

    def took_part(self) -> list[str]:
        """List those of the round that contributed or were not waited for, and can go on.

        Who was lost has left anyway.
        """
        current, late = self.round, frozenset(self.round.late)
        return [
            name
            for name in current.active
            if (name in current.updates and self.nodes[name].health is Health.READY)
            or (name in late and (self.nodes[name].is_free or self.nodes[name].is_busy))
        ]

    def list_absent(self) -> str:
        """Say of each node why it is not there."""
        return "; ".join(f"{node.name} {node.out or node.health.value}" for node in self.nodes.values())


def epoch_report(epoch: Round, version: int, choice: Choice, now_s: float, loss: float | None) -> EpochReport:
    """Sum up a finished epoch that made `version`."""
    updates = epoch.updates
    return EpochReport(
        epoch=epoch.epoch,
        version=version,
        active=epoch.active,
        contributed=tuple(name for name in epoch.active if name in updates),
        eliminated=choice.eliminated,
        readmitted=choice.readmitted,
        failed=dict(epoch.failed),
        late=epoch.late,
        started_at_s=epoch.started_at_s,
        seconds=now_s - epoch.started_at_s,
        loss=loss,
        node_train_s={name: update.train_s for name, update in updates.items()},
        node_round_s={name: update.round_s for name, update in updates.items()},
        node_late_s={name: update.late_s for name, update in updates.items()},
        node_loss={name: update.loss for name, update in updates.items()},
    )


def invalid(update: UpdateArrived) -> str | None:
    """Say what is wrong with an update's figures, None if nothing."""
    if not update.valid:
        return update.reason or "invalid"
    if update.samples < 1:
        return f"samples is {update.samples}, must be at least 1"
    for name in ("train_s", "round_s"):
        value = getattr(update, name)
        if value is not None and not (isfinite(value) and value >= 0):
            return f"{name} is {value}, must be finite and at least 0"
    return None
