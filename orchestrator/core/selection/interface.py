"""What every selection policy is given after an epoch, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from orchestrator.core.decisions import NodeScore
from orchestrator.core.jsonable import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """A finished epoch: who took part with which score (best first), who is out by earlier choices."""

    epoch: int
    scores: tuple[NodeScore, ...]
    eliminated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who takes no further part, who is taken back among those eliminated, and why."""

    eliminated: tuple[str, ...]
    reason: str
    readmitted: tuple[str, ...] = ()


class Policy(Protocol):
    """Choose the nodes of the next epoch."""

    @property
    def name(self) -> str:
        """Return the policy's name, as in configuration."""

    def choose(self, view: RoundView) -> Choice:
        """Choose after an epoch that is not the last."""


@runtime_checkable
class Remembering(Protocol):
    """A policy that learns from epoch to epoch says what it has learnt, so that a job can be resumed.

    What it drew from its random generator needs no mention: the engine keeps the generator's state.
    """

    def snapshot(self) -> dict[str, Json]:
        """Return what was learnt, as JSON."""

    def restore(self, learnt: dict[str, Json]) -> None:
        """Go on from what `snapshot` returned."""


def keep_one(count: int, scores: Sequence[NodeScore]) -> int:
    """Bound a number of eliminations so that one of the scored nodes is left."""
    return max(0, min(count, len(scores) - 1))
