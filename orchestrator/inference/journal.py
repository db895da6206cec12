"""What a deployment's engine says of it: what it is at, and its decisions."""

from __future__ import annotations

from orchestrator.core.decisions import Crossing
from orchestrator.core.jsonable import Json, to_json
from orchestrator.core.model import Placement
from orchestrator.core.reconfiguration import KEEP, Choice
from orchestrator.inference.messages import Announce, Instruction, Record
from orchestrator.inference.state import DeploymentState, describe_route
from orchestrator.journal import EngineJournal

RECORD_INTERVAL_S = 30.0
"""Identical verdicts to keep are recorded once in so long."""


class Journal(EngineJournal[Instruction]):
    """Says what becomes of a deployment."""

    def __init__(self, now: DeploymentState) -> None:
        super().__init__(now.spec.deployment, lambda decision: Record(decision=decision))
        self._now = now
        self._last_kept: tuple[object, float] | None = None

    def forget_kept(self) -> None:
        """Record the next verdict to keep, whatever it is."""
        self._last_kept = None

    def announce(self, state: str, reason: str) -> None:
        """Say what the deployment is at now."""
        self._now.announced = state
        route = self._now.route
        self.add(
            Announce(
                state=state,
                reason=reason,
                epoch=route.epoch if route is not None else None,
                placement=route.placement if route is not None else None,
                last_epoch=self._now.last_epoch,
            )
        )

    def keep(
        self,
        now_s: float,
        reason: str,
        found: tuple[Crossing, ...],
        *,
        code: str,
        choice: Choice | None = None,
    ) -> None:
        """Record that nothing is changed, unless that was recorded just now."""
        where = tuple(sorted((crossing.trigger, crossing.where) for crossing in found))
        if self.is_news((KEEP, code, where), now_s):
            self.decide_change(now_s, "reconfigure", reason, found, choice)

    def is_news(self, key: object, now_s: float) -> bool:
        """Say whether a verdict differs from the last one recorded, or that is long ago; remember it."""
        last = self._last_kept
        if last is not None and last[0] == key and now_s - last[1] < RECORD_INTERVAL_S:
            return False
        self._last_kept = (key, now_s)
        return True

    def decide_change(
        self,
        now_s: float,
        kind: str,
        reason: str,
        found: tuple[Crossing, ...],
        choice: Choice | None,
        *,
        verdict: str | None = None,
    ) -> None:
        """Record a verdict on the route."""
        assert self._now.route is not None
        self.decide(
            now_s,
            kind,
            verdict or (choice.verdict if choice is not None else KEEP),
            reason,
            inputs=self.route_inputs(self._now.route.placement),
            crossings=found,
            alternatives=choice.alternatives() if choice is not None else (),
        )

    def route_inputs(self, placement: Placement) -> dict[str, Json]:
        """Give what a decision on a placement stands on."""
        return {
            **describe_route(placement, self._now.nodes, self._now.network),
            "measured_at_s": self._now.network.taken_at_s,
            "latency_s": self._now.latency.value,
            "private": self._now.private,
            "min_nodes": self._now.spec.min_nodes,
            "weights": to_json(self._now.spec.weights),
            "thresholds": to_json(self._now.spec.thresholds),
        }
