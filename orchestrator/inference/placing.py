"""Find a deployment's placement, try again when nodes refuse, and tell when there is none."""

from __future__ import annotations

from orchestrator.core.errors import Infeasible
from orchestrator.core.jsonable import Json
from orchestrator.core.reconfiguration import Choice, place
from orchestrator.inference.changes import Changes
from orchestrator.inference.journal import Journal
from orchestrator.inference.state import DeploymentState

ATTEMPTS = 4
"""How often a placement is tried anew when nodes refuse, before the deployment waits or fails."""
REMAKE = "remake"
"""The verdict to make the same placement anew, under a new route epoch."""
REFUSAL_S = 30.0
"""How long a node that could not take its shard is left out."""
MEASURING_S = 60.0
"""How long a new deployment waits for paths that the controller has not measured yet."""


class Placing:
    """Finds placements without regard to the route that served, which is missing or broken."""

    def __init__(self, now: DeploymentState, journal: Journal, changes: Changes) -> None:
        self._now = now
        self._journal = journal
        self._changes = changes
        self._asked_at_s = 0.0

    def begin(self, now_s: float, kind: str, why: str) -> None:
        """Place for the first time in this process."""
        self._asked_at_s = now_s
        self.place(now_s, kind, why)

    def kind(self) -> str:
        """Return what placing is at the moment."""
        if self._now.resuming:
            return "resume"
        return "failover" if self._now.served else "place"

    def place(self, now_s: float, kind: str, why: str) -> None:
        """Find a placement and begin to change to it."""
        self._now.attempts += 1
        if (left := self._now.as_left()) is not None:
            reason = f"{why}; its nodes are there, so that it goes on where it was"
            self._journal.decide(now_s, kind, REMAKE, reason, inputs=self._journal.route_inputs(left))
            self._changes.begin(now_s, left, why)
            return
        try:
            choice = self._place_with_what_is_free()
        except Infeasible as error:
            self._cannot_place(now_s, kind, f"{why}; {error.reason}", error.constraint)
            return
        placement = choice.placement
        assert placement is not None
        self._journal.decide(
            now_s,
            kind,
            "place",
            f"{why}; {choice.reason}",
            inputs=self._journal.route_inputs(placement),
            alternatives=choice.alternatives(),
        )
        self._changes.begin(now_s, placement, why)

    def _place_with_what_is_free(self) -> Choice:
        """Place beside what the broken route still holds, or, where memory forbids, after freeing it."""
        try:
            return place(self._now.problem())
        except Infeasible as error:
            if error.constraint not in ("memory", "search") or self._now.route is None:
                raise
        choice = place(self._now.problem(keep_stages=False))
        self._changes.retire(self._now.route, except_for=self._now.route.placement.head)
        return choice

    def _cannot_place(self, now_s: float, kind: str, reason: str, constraint: str) -> None:
        unserved = not self._now.served or self._now.resuming
        if unserved and constraint == "paths" and now_s - self._asked_at_s < MEASURING_S:
            self._await_measurements(now_s, reason)
            return
        state = "degraded" if self._now.served else "failed"
        self._now.refused.clear()
        self._now.broken = self._now.broken or reason
        inputs: dict[str, Json] = {"constraint": constraint, "nodes": self._now.node_names()}
        if state == "failed" or self._journal.is_news((kind, "infeasible", constraint), now_s):
            self._journal.decide(now_s, kind, "infeasible", reason, inputs=inputs)
        if self._now.announced != state:
            self._journal.announce(state, reason)

    def _await_measurements(self, now_s: float, reason: str) -> None:
        """Leave a deployment that nothing served yet as it is; the next look at the network tries again."""
        waiting = f"waits for measurements, {MEASURING_S:g} s at most: {reason}"
        if self._journal.is_news(("place", "infeasible", "paths"), now_s):
            self._journal.decide(now_s, "place", "wait", waiting, inputs={"nodes": self._now.node_names()})
            self._journal.announce("preparing", waiting)

    def refuse(self, now_s: float, reasons: dict[str, str]) -> None:
        """Abort because of nodes that cannot take their shards, and leave those out for a while."""
        for node in reasons:
            self._now.refused[node] = now_s + REFUSAL_S
        why = "; ".join(f"{node}: {reason}" for node, reason in reasons.items())
        self._changes.abort(now_s, why)
        self.again(now_s, f"a node could not take its shard ({why})")

    def again(self, now_s: float, why: str) -> None:
        """Try again at once if nothing serves, a bounded number of times; then wait for the next look."""
        if self._now.route is not None and self._now.broken is None:
            return
        kind = self.kind()
        if self._now.attempts < ATTEMPTS:
            self.place(now_s, kind, why)
        else:
            self._cannot_place(
                now_s, kind, f"{self._now.attempts} attempts failed, the last: {why}", "attempts"
            )
