"""Decide what a deployment does next: events in, instructions out, no I/O (Koch 2025, Algorithm 1).

A change of route is made in two phases: every node of the new ring prepares its shard; when all are ready the
stages commit, the head last, and the head goes on at its next token under the new route epoch. If anything
fails before that, the change is aborted and nothing has changed. A node of the route that is lost is replaced
at once. The head stays where it is as long as its node lives, because it holds the running requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from orchestrator.core.cost import Problem
from orchestrator.core.decisions import Crossing
from orchestrator.core.jsonable import Json
from orchestrator.core.model import Network, NodeState, Placement
from orchestrator.core.reconfiguration import KEEP, Choice, place, reconsider
from orchestrator.core.triggers import (
    NODE_LOSS,
    OPERATOR,
    PRIVACY,
    STALL,
    is_urgent,
)
from orchestrator.inference.changes import Changes
from orchestrator.inference.journal import Journal
from orchestrator.inference.messages import (
    CommitFailed,
    Committed,
    DeploymentSpec,
    DeployRequested,
    EnvironmentTaken,
    Event,
    FailRequests,
    Instruction,
    MigrationRequested,
    NodeLost,
    Prepared,
    PrepareFailed,
    PrivateRequest,
    Resumed,
    Stalled,
    Tick,
    TokenObserved,
    UndeployRequested,
)
from orchestrator.inference.placing import REMAKE, Placing
from orchestrator.inference.state import DeploymentState, Route, Step


class Engine:
    """One deployment. Feed it every event through `handle`, carry out what it returns, in order."""

    def __init__(self, spec: DeploymentSpec) -> None:
        self.spec = spec
        self._now = DeploymentState(spec=spec)
        self._stalls = 0
        self._journal = Journal(self._now)
        self._changes = Changes(self._now, self._journal)
        self._placing = Placing(self._now, self._journal, self._changes)
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            DeployRequested: self._on_deploy,
            Resumed: self._on_resumed,
            EnvironmentTaken: self._on_environment,
            Prepared: self._changes.prepared,
            PrepareFailed: self._on_failed,
            Committed: self._changes.committed,
            CommitFailed: self._on_failed,
            TokenObserved: self._on_token,
            Stalled: self._on_stalled,
            NodeLost: self._on_lost,
            PrivateRequest: self._on_private,
            MigrationRequested: self._on_migration,
            UndeployRequested: self._on_undeploy,
            Tick: self._on_tick,
        }

    @property
    def state(self) -> str:
        """Return the state announced last."""
        return self._now.announced

    @property
    def ended(self) -> bool:
        """Say whether the deployment is over; later events change nothing."""
        return self._now.announced in ("failed", "retired")

    @property
    def placement(self) -> Placement | None:
        """Return the placement that serves, None before the first."""
        return self._now.route.placement if self._now.route is not None else None

    @property
    def latency_s(self) -> float | None:
        """Return the EWMA of the time per token on the present route, None if none was seen."""
        return self._now.latency.value

    def handle(self, event: Event) -> list[Instruction]:
        """Take `event`, return what is to be done, in order."""
        if self.ended:
            return []
        self._handlers[type(event)](event)
        return self._journal.take()

    # Deploying

    def _on_deploy(self, event: DeployRequested) -> None:
        self._now.nodes, self._now.network = event.nodes, event.network
        self._placing.begin(event.now_s, "place", "deployment asked for")

    def _on_resumed(self, event: Resumed) -> None:
        """Go on with what an earlier process left, where it was if the nodes still allow that."""
        self._now.nodes, self._now.network = event.nodes, event.network
        self._now.last_epoch = event.last_epoch
        self._now.served = event.served
        inputs: dict[str, Json] = {"epoch": event.epoch, "nodes": self._now.node_names()}
        if event.placement is not None:
            self._now.route = Route(epoch=event.epoch, placement=event.placement)
            self._now.broken, self._now.resuming = event.reason, True
            self._now.emptied = set(event.emptied)
            inputs |= {"placement": event.placement.describe(), "emptied": [*sorted(event.emptied)]}
        self._journal.decide(event.now_s, "deployment", "resume", event.reason, inputs=inputs)
        self._placing.begin(event.now_s, self._placing.kind(), event.reason)

    # A change in two phases

    def _on_failed(self, event: PrepareFailed | CommitFailed) -> None:
        change = self._changes.awaited(
            event.node, event.epoch, Step.PREPARING, Step.COMMITTING, Step.SWITCHING
        )
        if change is not None:
            self._placing.refuse(event.now_s, {event.node: event.reason})

    # Watching

    def _on_environment(self, event: EnvironmentTaken) -> None:
        self._now.nodes, self._now.network = event.nodes, event.network
        self._now.refused = {node: until for node, until in self._now.refused.items() if until > event.now_s}
        if self._now.change is not None or self._now.announced == "new":
            return
        if self._now.route is None or self._now.broken is not None:
            self._now.attempts = 0
            why = self._now.broken or "deployment asked for"
            self._placing.place(event.now_s, self._placing.kind(), why)
            return
        found = self._now.crossings(self._now.route)
        if found:
            self._consider(event.now_s, found)

    def _consider(self, now_s: float, found: tuple[Crossing, ...]) -> None:
        """Act on crossed thresholds: replace what is lost at once, else weigh the options."""
        route = self._now.route
        assert route is not None
        lost = [crossing for crossing in found if crossing.trigger == NODE_LOSS]
        if lost:
            self._fail_over(now_s, "; ".join(crossing.reason for crossing in lost))
            return
        wait_s = self._cool_down_left_s(now_s)
        if wait_s > 0 and not is_urgent(found):
            reason = f"{found[0].reason}; the cool-down lasts {wait_s:.1f} s more"
            self._journal.keep(now_s, reason, found, code="cool-down")
            return
        choice = self._weigh(route, found)
        triggers = "; ".join(crossing.reason for crossing in found)
        if choice.verdict == KEEP:
            self._journal.keep(now_s, f"{triggers}. {choice.reason}", found, choice=choice, code="no-gain")
            return
        placement = choice.placement
        assert placement is not None
        self._journal.decide_change(now_s, "reconfigure", f"{triggers}. {choice.reason}", found, choice)
        self._changes.begin(now_s, placement, f"{choice.verdict}: {choice.reason}")

    def _weigh(
        self, route: Route, found: tuple[Crossing, ...], *, avoid: frozenset[str] = frozenset()
    ) -> Choice:
        return reconsider(
            self._now.problem(avoid),
            route.placement,
            found,
            latency_target_s=self._now.spec.thresholds.latency_s,
            latency_s=self._now.latency.value,
            hysteresis=self._now.spec.hysteresis,
        )

    def _cool_down_left_s(self, now_s: float) -> float:
        if self._now.changed_at_s is None:
            return 0.0
        return self._now.spec.thresholds.cool_down_s - (now_s - self._now.changed_at_s)

    def _on_token(self, event: TokenObserved) -> None:
        if self._now.route is None or event.epoch != self._now.route.epoch:
            return
        self._stalls = 0
        if event.index > 0 and event.replayed == 0:
            self._now.latency = self._now.latency.add(event.elapsed_s)

    def _on_private(self, event: PrivateRequest) -> None:
        """From now on the deployment keeps its layers on trusted nodes."""
        self._now.private = True
        route = self._now.route
        if route is None or self._now.change is not None or self._now.broken is not None:
            return
        found = tuple(crossing for crossing in self._now.crossings(route) if crossing.trigger == PRIVACY)
        if found:
            self._consider(event.now_s, found)

    def _on_migration(self, event: MigrationRequested) -> None:
        if self._now.route is None or self._now.change is not None or self._now.broken is not None:
            reason = "nothing serves yet" if self._now.route is None else "a change is in progress already"
            self._journal.decide(event.now_s, "reconfigure", KEEP, f"{event.reason}; {reason}")
            return
        self._journal.forget_kept()
        self._consider(event.now_s, (_crossing(OPERATOR, "deployment", event.reason),))

    # What goes wrong

    def _on_lost(self, event: NodeLost) -> None:
        self._now.emptied.add(event.node)
        self._now.nodes = tuple(
            replace(node, alive=False) if node.name == event.node else node for node in self._now.nodes
        )
        reason = f"node {event.node} is lost: {event.reason}"
        on_route = self._now.route is not None and event.node in self._now.route.placement.nodes
        in_change = self._now.change is not None and event.node in self._now.change.route.placement.nodes
        if in_change:
            self._abort_lost(event, reason, on_route=on_route)
        if on_route:
            self._fail_over(event.now_s, reason)
        elif in_change:
            self._placing.again(event.now_s, reason)

    def _abort_lost(self, event: NodeLost, reason: str, *, on_route: bool) -> None:
        if on_route:
            self._now.broken = reason
        self._changes.abort(event.now_s, reason)

    def _fail_over(self, now_s: float, reason: str) -> None:
        """Replace a broken route; a change that is under way and still whole goes on instead."""
        route = self._now.route
        assert route is not None
        self._now.broken, self._now.attempts = reason, 0
        if not self._now.is_alive(route.placement.head):
            self._lose_head(route, reason)
        if self._now.change is not None:
            self._journal.announce("degraded", f"{reason}; the change under way replaces the route")
            return
        self._placing.place(now_s, "failover", reason)

    def _lose_head(self, route: Route, reason: str) -> None:
        """Give up what only the head knew: its running requests. The old shards are of no more use."""
        self._journal.add(FailRequests(reason=f"{reason}; it was the head, which held the running requests"))
        self._changes.retire(route)
        self._now.route = None

    def _on_stalled(self, event: Stalled) -> None:
        """Replace a ring that does not answer although its nodes seem alive.

        First another placement, or the same one made anew; if that stalls too, one without any of the ring's
        other nodes.
        """
        route = self._now.route
        if route is None or event.epoch != route.epoch or self._now.change is not None:
            return
        self._stalls += 1
        found = (
            *self._now.crossings(route),
            _crossing(STALL, "route", f"the ring stalls: {event.detail}"),
        )
        if any(crossing.trigger == NODE_LOSS for crossing in found):
            self._consider(event.now_s, found)
            return
        suspects = frozenset(route.placement.nodes[1:]) if self._stalls > 1 else frozenset()
        choice = self._weigh(route, found, avoid=suspects)
        placement = route.placement if choice.placement is None else choice.placement
        verdict = REMAKE if placement == route.placement else choice.verdict
        reason = f"{found[-1].reason}. {choice.reason}"
        self._journal.decide_change(event.now_s, "failover", reason, found, choice, verdict=verdict)
        self._changes.begin(event.now_s, placement, found[-1].reason)

    def _on_tick(self, event: Tick) -> None:
        change = self._now.change
        if change is None:
            return
        preparing = change.step is Step.PREPARING
        limit_s = self._now.spec.prepare_timeout_s if preparing else self._now.spec.commit_timeout_s
        if event.now_s - change.since_s > limit_s:
            what = "not ready" if preparing else "no commit"
            self._placing.refuse(
                event.now_s, dict.fromkeys(sorted(change.waiting), f"{what} within {limit_s:g} s")
            )

    def _on_undeploy(self, event: UndeployRequested) -> None:
        self._now.broken = self._now.broken or event.reason
        self._changes.abort(event.now_s, event.reason)
        self._journal.add(FailRequests(reason=f"the deployment is taken down: {event.reason}"))
        if self._now.route is not None:
            self._changes.retire(self._now.route)
            self._now.route = None
        self._journal.decide(event.now_s, "deployment", "retired", event.reason)
        self._journal.announce("retired", event.reason)


def preview(spec: DeploymentSpec, nodes: Iterable[NodeState], network: Network) -> Choice:
    """Choose a placement as a new deployment would get it now, without changing anything.

    Raises:
        Infeasible: no placement meets the constraints.
    """
    allowed = set(spec.nodes)
    return place(
        Problem(
            model=spec.model,
            nodes=tuple(node for node in nodes if not allowed or node.name in allowed),
            network=network,
            weights=spec.weights,
            workload=spec.workload,
            utilisation_limit=spec.thresholds.utilisation,
            min_nodes=spec.min_nodes,
            pinned_head=spec.pinned_head,
        )
    )


def _crossing(trigger: str, where: str, reason: str) -> Crossing:
    return Crossing(trigger=trigger, value=None, threshold=None, unit="", where=where, reason=reason)
