"""What every selection policy is given, and what it answers.

A policy is asked three things: whom to begin with (`select`, before anything is sent), who trains a round
and when it may close (`plan_round`, `may_close`), and who goes on after it (`choose`). All it may know is in
the views: it keeps nothing of its own, so that a job can be replayed and resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.core.decisions import Alternative, NodeScore
from orchestrator.core.jsonable import Json
from orchestrator.core.model import Network, NodeState
from orchestrator.core.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a node made of a round it was asked to train.

    `seconds` from being asked until it answered, or as long as it was waited for. `load_s` is the part of it
    in which the node was loaded first; None if it was loaded before. `predicted_s` is what was predicted
    when it began.
    """

    answered: bool
    seconds: float
    load_s: float | None = None
    predicted_s: float | None = None
    train_s: float | None = None
    samples: int = 0
    loss: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A finished round: what became of each node that was asked."""

    epoch: int
    seconds: float
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that is known: what is measured now, what the job asks of nodes, and how its rounds went so far."""

    epochs: int = 1
    states: Mapping[str, NodeState] = field(default_factory=dict)
    network: Network = field(default_factory=lambda: Network(taken_at_s=0.0))
    workload: Workload = field(default_factory=Workload)
    history: tuple[RoundRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Before the first round: who could take part."""

    nodes: tuple[str, ...]
    situation: Situation = field(default_factory=Situation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Whom to begin with, and why. The others get nothing until they are admitted or the job is done."""

    nodes: tuple[str, ...]
    reason: str
    alternatives: tuple[Alternative, ...] = ()
    inputs: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStart:
    """A round is about to begin: who takes part in the job and is free now; `loaded` have model and data."""

    epoch: int
    candidates: tuple[str, ...]
    loaded: frozenset[str] = frozenset()
    situation: Situation = field(default_factory=Situation)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """Who trains the round, and when it may close although some have not answered.

    It closes when all have answered or failed; else once `quorum` have answered and `patience_s` have passed
    since its beginning, if the policy's `may_close` agrees; and in any case, with one answer at least, at
    `deadline_s`. Who is late trains on; what it sends then is discarded, and it may be asked again.
    """

    participants: tuple[str, ...]
    reason: str
    quorum: int | None = None
    patience_s: float = 0.0
    deadline_s: float | None = None
    forecast_s: Mapping[str, float] = field(default_factory=dict)
    inputs: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """A round whose quorum has answered: all that take part, scored by what is known now (best first).

    Times are those since a node was asked: of an `awaited` one, what it has taken until now, which can only
    grow. `answered` are the seconds of those that have answered, `forecast_s` what the round's plan forecast.
    """

    epoch: int
    scores: tuple[NodeScore, ...]
    awaited: frozenset[str]
    elapsed_s: float = 0.0
    answered: Mapping[str, float] = field(default_factory=dict)
    forecast_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """A finished epoch: who took part with which score (best first), who is out by earlier choices.

    `late` are those among `scores` that were not waited for, `lost` those that failed in the round.
    `standby` are the eliminated that can be reached, `pool` the scores of those and of all that took part,
    scored together; `unselected` those that were never asked and could be. `choices` are the earlier ones,
    one per epoch.
    """

    epoch: int
    scores: tuple[NodeScore, ...]
    eliminated: tuple[str, ...] = ()
    late: frozenset[str] = frozenset()
    lost: tuple[str, ...] = ()
    standby: tuple[str, ...] = ()
    pool: tuple[NodeScore, ...] = ()
    unselected: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    situation: Situation = field(default_factory=Situation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who takes no further part, who is taken (back) in, and why."""

    eliminated: tuple[str, ...]
    reason: str
    readmitted: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()


class Policy(Protocol):
    """Choose who trains."""

    @property
    def name(self) -> str:
        """Return the policy's name, as in configuration."""

    def select(self, start: Start) -> Selection:
        """Choose whom to begin with."""

    def plan_round(self, start: RoundStart) -> RoundPlan:
        """Choose who trains the round, and how long to wait for them."""

    def may_close(self, view: OpenRound) -> str | None:
        """Say why a round whose quorum has answered may close now; None: wait on."""

    def choose(self, view: RoundView) -> Choice:
        """Choose after an epoch that is not the last."""


class Everybody:
    """What a policy does where it does not choose: begin with all, train all, wait for all, keep all."""

    def select(self, start: Start) -> Selection:
        """Begin with all."""
        return Selection(nodes=start.nodes, reason=f"all {len(start.nodes)} nodes begin")

    def plan_round(self, start: RoundStart) -> RoundPlan:
        """Have all train and wait for all."""
        return RoundPlan(participants=start.candidates, reason=f"all {len(start.candidates)} train")

    def may_close(self, view: OpenRound) -> str | None:
        """Close at the quorum."""
        return f"enough have answered; not waited for: {', '.join(sorted(view.awaited))}"

    def choose(self, view: RoundView) -> Choice:
        """Keep all."""
        return Choice(eliminated=(), reason=f"all {len(view.scores)} stay")


def may_go(count: int, scores: Sequence[NodeScore], keep: int) -> int:
    """Bound a number of eliminations so that `keep` of the scored nodes are left."""
    return max(0, min(count, len(scores) - keep))
