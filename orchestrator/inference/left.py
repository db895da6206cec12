"""What a process leaves of a deployment in its record, and what the next one reads from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.core.jsonable import to_json
from orchestrator.core.model import Placement, Shard, Stage
from orchestrator.ports import Json

SUSPENDED, RETIRING = "suspended", "retiring"
ATTEMPTS_LIMIT = 3
"""How often one may be begun again without its model having been read: reading it may be what kills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """One deployment as an earlier process left it; `placement` None: nothing served yet.

    No route epoch above `last_epoch` was given to any node. `model` is the digest of what `placement` serves,
    `memory_bytes` what it takes of each node, `placements` what served when; `resumes` counts the processes
    that went on with it, `attempts` those of them in a row that ended before they had read the model.
    """

    epoch: int = 0
    last_epoch: int = 0
    placement: Placement | None = None
    placements: tuple[Json, ...] = ()
    model: str | None = None
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    resumes: int = 0
    attempts: int = 0

    def shards(self) -> tuple[Shard, ...]:
        """Return what its nodes held."""
        return () if self.placement is None else self.placement.shards()

    def to_json(self) -> Json:
        """Write it as a record's summary."""
        return {
            "route_epoch": self.epoch or None,
            "last_epoch": self.last_epoch,
            "placement": None if self.placement is None else placement_json(self.placement),
            "placements": list(self.placements),
            "model_digest": self.model,
            "memory_bytes": dict(self.memory_bytes),
            "resumes": self.resumes,
            "attempts": self.attempts,
        }


def read(summary: Json) -> Left:
    """Read what a record's summary says.

    Raises:
        CoreError, KeyError, TypeError, ValueError: it was written by something else.
    """
    described, digest = summary.get("placement"), summary.get("model_digest")
    return Left(
        epoch=int(summary.get("route_epoch") or 0),
        last_epoch=int(summary.get("last_epoch") or 0),
        placement=None if described is None else _placement(described),
        placements=tuple(dict(item) for item in summary.get("placements", ())),
        model=None if digest is None else str(digest),
        memory_bytes={str(node): int(size) for node, size in summary.get("memory_bytes", {}).items()},
        resumes=int(summary.get("resumes", 0)),
        attempts=int(summary.get("attempts", 0)),
    )


def placement_json(placement: Placement) -> Json:
    """Write a placement as JSON."""
    return {
        "head": placement.head,
        "stages": [to_json(stage) for stage in placement.stages],
        "hops": [list(hop) for hop in placement.hops],
        "text": placement.describe(),
    }


def _placement(described: Json) -> Placement:
    stages = tuple(
        Stage(node=str(one["node"]), first_layer=int(one["first_layer"]), end_layer=int(one["end_layer"]))
        for one in described["stages"]
    )
    return Placement(head=str(described["head"]), stages=stages)
