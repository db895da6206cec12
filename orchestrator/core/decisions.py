"""What was decided, on which inputs, with which alternatives: one record for log, API, report and store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.core.jsonable import Json, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionScore:
    """One criterion of one node: `value` as measured, `oriented` in 0..1 (1 is best), `note` on how."""

    value: float | None
    oriented: float
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeScore:
    """One node's score with all that it was made of; rank 1 is the best."""

    node: str
    score: float
    rank: int
    criteria: Mapping[str, CriterionScore]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A threshold and the value that met it; `where` names a node, a hop or a request."""

    trigger: str
    value: float | None
    threshold: float | None
    unit: str
    where: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """What could have been done: its cost and terms, or (cost None) why it could not."""

    name: str
    cost: float | None
    terms: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    chosen: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision, complete enough to be explained without anything else.

    `kind`: `eliminate`, `node`, `place`, `reconfigure`, `failover`, `job` or `deployment`. `subject` is the
    job or deployment. `verdict` is a short word, `reason` a sentence. `inputs` are what it was decided on.
    """

    kind: str
    subject: str
    at_s: float
    verdict: str
    reason: str
    inputs: Mapping[str, Json] = field(default_factory=dict)
    scores: tuple[NodeScore, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    alternatives: tuple[Alternative, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """Return the record as JSON-able maps and lists."""
        document = to_json(self)
        assert isinstance(document, dict)
        return document
