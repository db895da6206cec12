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
from orchestrator.core.decisions import Alternative, Crossing, Decision
from orchestrator.core.errors import Infeasible
from orchestrator.core.jsonable import Json, to_json
from orchestrator.core.model import Network, NodeState, Placement, Shard
from orchestrator.core.reconfiguration import KEEP, Choice, place, reconsider
from orchestrator.core.triggers import (
    NODE_LOSS,
    OPERATOR,
    PRIVACY,
    STALL,
    Ewma,
    crossings,
    is_urgent,
)
from orchestrator.inference.messages import (
    AbortShard,
    Announce,
    CommitFailed,
    CommitShard,
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
    PrepareShard,
    PrivateRequest,
    Record,
    RetireShard,
    Stalled,
    Tick,
    TokenObserved,
    UndeployRequested,
)
from orchestrator.inference.state import Change, Route, Step, describe_route

ATTEMPTS = 4
"""How often a placement is tried anew when nodes refuse, before the deployment waits or fails."""
RECORD_INTERVAL_S = 30.0
"""Identical verdicts to keep are recorded once in so long."""
REMAKE = "remake"
"""The verdict to make the same placement anew, under a new route epoch."""
REFUSAL_S = 30.0
"""How long a node that could not take its shard is left out."""
MEASURING_S = 60.0
"""How long a new deployment waits for paths that the controller has not measured yet."""


class Engine:
    """One deployment. Feed it every event through `handle`, carry out what it returns, in order."""

    def __init__(self, spec: DeploymentSpec) -> None:
        self.spec = spec
        self._state = "new"
        self._nodes: tuple[NodeState, ...] = ()
        self._network = Network(taken_at_s=0.0)
        self._route: Route | None = None
        self._broken: str | None = None
        self._change: Change | None = None
        self._last_epoch = 0
        self._attempts = 0
        self._served = False
        self._asked_at_s = 0.0
        self._changed_at_s: float | None = None
        self._latency = Ewma()
        self._stalls = 0
        self._private = False
        self._emptied: set[str] = set()
        """Nodes of the route that hold its shard no more: retired, or lost (and perhaps back, empty)."""
        self._refused: dict[str, float] = {}
        self._last_kept: tuple[object, float] | None = None
        self._out: list[Instruction] = []
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            DeployRequested: self._on_deploy,
            EnvironmentTaken: self._on_environment,
            Prepared: self._on_prepared,
            PrepareFailed: self._on_failed,
            Committed: self._on_committed,
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
        return self._state

    @property
    def ended(self) -> bool:
        """Say whether the deployment is over; later events change nothing."""
        return self._state in ("failed", "retired")

    @property
    def placement(self) -> Placement | None:
        """Return the placement that serves, None before the first."""
        return self._route.placement if self._route is not None else None

    @property
    def latency_s(self) -> float | None:
        """Return the EWMA of the time per token on the present route, None if none was seen."""
        return self._latency.value

    def handle(self, event: Event) -> list[Instruction]:
        """Take `event`, return what is to be done, in order."""
        if self.ended:
            return []
        self._handlers[type(event)](event)
        instructions, self._out = self._out, []
        return instructions

    # Deploying and re-placing

    def _on_deploy(self, event: DeployRequested) -> None:
        self._nodes, self._network = event.nodes, event.network
        self._asked_at_s = event.now_s
        self._place(event.now_s, "place", "deployment asked for")

    def _place(self, now_s: float, kind: str, why: str, *, avoid: frozenset[str] = frozenset()) -> None:
        """Find a placement without regard to the present one, which is missing or broken, and begin it."""
        self._attempts += 1
        try:
            choice = self._place_with_what_is_free(avoid)
        except Infeasible as error:
            self._cannot_place(now_s, kind, f"{why}; {error.reason}", error.constraint)
            return
        placement = choice.placement
        assert placement is not None
        self._decide(
            now_s,
            kind,
            "place",
            f"{why}; {choice.reason}",
            inputs=self._route_inputs(placement),
            alternatives=choice.alternatives(),
        )
        self._begin(now_s, placement, why)

    def _place_with_what_is_free(self, avoid: frozenset[str]) -> Choice:
        """Place beside what the broken route still holds, or, where memory forbids, after freeing it."""
        try:
            return place(self._problem(avoid))
        except Infeasible as error:
            if error.constraint not in ("memory", "search") or self._route is None:
                raise
        choice = place(self._problem(avoid, keep_stages=False))
        self._retire(self._route, except_for=self._route.placement.head)
        return choice

    def _cannot_place(self, now_s: float, kind: str, reason: str, constraint: str) -> None:
        if not self._served and constraint == "paths" and now_s - self._asked_at_s < MEASURING_S:
            self._await_measurements(now_s, reason)
            return
        state = "degraded" if self._served else "failed"
        self._refused.clear()
        self._broken = self._broken or reason
        inputs: dict[str, Json] = {"constraint": constraint, "nodes": _names(self._nodes)}
        if state == "failed" or self._is_news((kind, "infeasible", constraint), now_s):
            self._decide(now_s, kind, "infeasible", reason, inputs=inputs)
        if self._state != state:
            self._announce(state, reason)

    def _await_measurements(self, now_s: float, reason: str) -> None:
        """Leave a deployment that nothing served yet as it is; the next look at the network tries again."""
        waiting = f"waits for measurements, {MEASURING_S:g} s at most: {reason}"
        if self._is_news(("place", "infeasible", "paths"), now_s):
            self._decide(now_s, "place", "wait", waiting, inputs={"nodes": _names(self._nodes)})
            self._announce("preparing", waiting)

    def _problem(self, avoid: frozenset[str] = frozenset(), *, keep_stages: bool = True) -> Problem:
        allowed = set(self.spec.nodes)
        nodes = tuple(
            node
            for node in self._nodes
            if (not allowed or node.name in allowed)
            and node.name not in self._refused
            and node.name not in avoid
        )
        return Problem(
            model=self.spec.model,
            nodes=nodes,
            network=self._network,
            weights=self.spec.weights,
            workload=self.spec.workload,
            utilisation_limit=self.spec.thresholds.utilisation,
            min_nodes=self.spec.min_nodes,
            all_trusted=self._private,
            pinned_head=self.spec.pinned_head or self._living_head(),
            held={
                node: shard for node, shard in self._held().items() if keep_stages or "head" in shard.roles
            },
        )

    def _living_head(self) -> str | None:
        if self._route is None:
            return None
        head = self._route.placement.head
        return head if self._is_alive(head) else None

    def _held(self) -> dict[str, Shard]:
        if self._route is None:
            return {}
        shards = self._route.placement.shards()
        return {
            shard.node: shard
            for shard in shards
            if self._is_alive(shard.node) and shard.node not in self._emptied
        }

    def _is_alive(self, name: str) -> bool:
        return any(node.name == name and node.alive for node in self._nodes)

    # A change in two phases

    def _begin(self, now_s: float, placement: Placement, cause: str) -> None:
        self._last_epoch += 1
        route = Route(epoch=self._last_epoch, placement=placement)
        self._change = Change(
            route=route, cause=cause, began_at_s=now_s, since_s=now_s, waiting=set(placement.nodes)
        )
        held = self._held()
        for shard in placement.shards():
            old = held.get(shard.node)
            reuse = old is not None and old.holds_as(shard)
            self._out.append(PrepareShard(epoch=route.epoch, shard=shard, reuse=reuse))
        self._announce(self._state_in_change(), f"preparing {placement.describe()}: {cause}")

    def _state_in_change(self) -> str:
        if self._broken is not None:
            return "degraded"
        return "preparing" if self._route is None else "reconfiguring"

    def _on_prepared(self, event: Prepared) -> None:
        change = self._awaited(event.node, event.epoch, Step.PREPARING)
        if change is None:
            return
        change.waiting.discard(event.node)
        if change.waiting:
            return
        change.step, change.since_s = Step.COMMITTING, event.now_s
        change.waiting = set(change.route.placement.nodes) - {change.head}
        for node in change.route.placement.nodes[1:]:
            self._out.append(CommitShard(node=node, epoch=event.epoch))
        self._switch_if_ready(change, event.now_s)

    def _on_committed(self, event: Committed) -> None:
        change = self._awaited(event.node, event.epoch, Step.COMMITTING, Step.SWITCHING)
        if change is None:
            return
        change.waiting.discard(event.node)
        if change.step is Step.SWITCHING:
            self._switched(change, event.now_s)
        else:
            self._switch_if_ready(change, event.now_s)

    def _switch_if_ready(self, change: Change, now_s: float) -> None:
        """Commit the head once all others have."""
        if change.waiting:
            return
        change.step, change.since_s, change.waiting = Step.SWITCHING, now_s, {change.head}
        self._out.append(CommitShard(node=change.head, epoch=change.route.epoch))

    def _switched(self, change: Change, now_s: float) -> None:
        old, self._route, self._change = self._route, change.route, None
        self._broken, self._attempts = None, 0
        self._latency, self._last_kept = Ewma(), None
        self._served = True
        if old is not None:
            self._changed_at_s = now_s
            self._retire(old)
        self._emptied.clear()
        seconds = now_s - change.began_at_s
        self._decide(
            now_s,
            "deployment",
            "switched",
            f"route epoch {change.route.epoch} serves after {seconds:.2f} s: "
            f"{change.route.placement.describe()}",
            inputs={"epoch": change.route.epoch, "seconds": seconds, "cause": change.cause},
        )
        self._announce("serving", change.cause)

    def _retire(self, route: Route, *, except_for: str | None = None) -> None:
        for node in route.placement.nodes:
            if node != except_for and self._is_alive(node):
                self._out.append(RetireShard(node=node, epoch=route.epoch))
                self._emptied.add(node)

    def _awaited(self, node: str, epoch: int, *steps: Step) -> Change | None:
        """Return the change that an answer belongs to, None if it is late or was not asked for."""
        change = self._change
        if change is None or change.route.epoch != epoch or change.step not in steps:
            return None
        return change if node in change.waiting else None

    def _on_failed(self, event: PrepareFailed | CommitFailed) -> None:
        change = self._awaited(event.node, event.epoch, Step.PREPARING, Step.COMMITTING, Step.SWITCHING)
        if change is not None:
            self._refuse(event.now_s, {event.node: event.reason})

    def _refuse(self, now_s: float, reasons: dict[str, str]) -> None:
        """Abort because of nodes that cannot take their shards, and leave those out for a while."""
        for node in reasons:
            self._refused[node] = now_s + REFUSAL_S
        why = "; ".join(f"{node}: {reason}" for node, reason in reasons.items())
        self._abort(now_s, why)
        self._place_again(now_s, f"a node could not take its shard ({why})")

    def _abort(self, now_s: float, reason: str) -> None:
        change, self._change = self._change, None
        if change is None:
            return
        for node in change.route.placement.nodes:
            if self._is_alive(node):
                self._out.append(AbortShard(node=node, epoch=change.route.epoch))
        self._decide(
            now_s,
            "deployment",
            "aborted",
            f"route epoch {change.route.epoch}: {reason}",
            inputs={"epoch": change.route.epoch, "step": change.step.value},
        )
        if self._route is not None and self._broken is None:
            self._announce("serving", f"the change was aborted, nothing has changed: {reason}")

    def _place_again(self, now_s: float, why: str) -> None:
        """Try again at once if nothing serves, a bounded number of times; then wait for the next look."""
        if self._route is not None and self._broken is None:
            return
        kind = "failover" if self._served else "place"
        if self._attempts < ATTEMPTS:
            self._place(now_s, kind, why)
        else:
            self._cannot_place(now_s, kind, f"{self._attempts} attempts failed, the last: {why}", "attempts")

    # Watching

    def _on_environment(self, event: EnvironmentTaken) -> None:
        self._nodes, self._network = event.nodes, event.network
        self._refused = {node: until for node, until in self._refused.items() if until > event.now_s}
        if self._change is not None or self._state == "new":
            return
        if self._route is None or self._broken is not None:
            self._attempts = 0
            kind = "failover" if self._served else "place"
            self._place(event.now_s, kind, self._broken or "deployment asked for")
            return
        found = self._crossings(self._route)
        if found:
            self._consider(event.now_s, found)

    def _crossings(self, route: Route) -> tuple[Crossing, ...]:
        return crossings(
            route.placement,
            self._nodes,
            self._network,
            self._latency.value,
            self.spec.thresholds,
            private=self._private,
        )

    def _consider(self, now_s: float, found: tuple[Crossing, ...]) -> None:
        """Act on crossed thresholds: replace what is lost at once, else weigh the options."""
        route = self._route
        assert route is not None
        lost = [crossing for crossing in found if crossing.trigger == NODE_LOSS]
        if lost:
            self._fail_over(now_s, "; ".join(crossing.reason for crossing in lost))
            return
        wait_s = self._cool_down_left_s(now_s)
        if wait_s > 0 and not is_urgent(found):
            reason = f"{found[0].reason}; the cool-down lasts {wait_s:.1f} s more"
            self._keep(now_s, reason, found, code="cool-down")
            return
        choice = self._weigh(route, found)
        triggers = "; ".join(crossing.reason for crossing in found)
        if choice.verdict == KEEP:
            self._keep(now_s, f"{triggers}. {choice.reason}", found, choice=choice, code="no-gain")
            return
        placement = choice.placement
        assert placement is not None
        self._decide_change(now_s, "reconfigure", f"{triggers}. {choice.reason}", found, choice)
        self._begin(now_s, placement, f"{choice.verdict}: {choice.reason}")

    def _weigh(
        self, route: Route, found: tuple[Crossing, ...], *, avoid: frozenset[str] = frozenset()
    ) -> Choice:
        return reconsider(
            self._problem(avoid),
            route.placement,
            found,
            latency_target_s=self.spec.thresholds.latency_s,
            latency_s=self._latency.value,
            hysteresis=self.spec.hysteresis,
        )

    def _cool_down_left_s(self, now_s: float) -> float:
        if self._changed_at_s is None:
            return 0.0
        return self.spec.thresholds.cool_down_s - (now_s - self._changed_at_s)

    def _on_token(self, event: TokenObserved) -> None:
        if self._route is None or event.epoch != self._route.epoch:
            return
        self._stalls = 0
        if event.index > 0 and event.replayed == 0:
            self._latency = self._latency.add(event.elapsed_s)

    def _on_private(self, event: PrivateRequest) -> None:
        """From now on the deployment keeps its layers on trusted nodes."""
        self._private = True
        route = self._route
        if route is None or self._change is not None or self._broken is not None:
            return
        found = tuple(crossing for crossing in self._crossings(route) if crossing.trigger == PRIVACY)
        if found:
            self._consider(event.now_s, found)

    def _on_migration(self, event: MigrationRequested) -> None:
        if self._route is None or self._change is not None or self._broken is not None:
            reason = "nothing serves yet" if self._route is None else "a change is in progress already"
            self._decide(event.now_s, "reconfigure", KEEP, f"{event.reason}; {reason}")
            return
        self._last_kept = None
        self._consider(event.now_s, (_crossing(OPERATOR, "deployment", event.reason),))

    # What goes wrong

    def _on_lost(self, event: NodeLost) -> None:
        self._emptied.add(event.node)
        self._nodes = tuple(
            replace(node, alive=False) if node.name == event.node else node for node in self._nodes
        )
        reason = f"node {event.node} is lost: {event.reason}"
        on_route = self._route is not None and event.node in self._route.placement.nodes
        in_change = self._change is not None and event.node in self._change.route.placement.nodes
        if in_change:
            self._abort_lost(event, reason, on_route=on_route)
        if on_route:
            self._fail_over(event.now_s, reason)
        elif in_change:
            self._place_again(event.now_s, reason)

    def _abort_lost(self, event: NodeLost, reason: str, *, on_route: bool) -> None:
        if on_route:
            self._broken = reason
        self._abort(event.now_s, reason)

    def _fail_over(self, now_s: float, reason: str) -> None:
        """Replace a broken route; a change that is under way and still whole goes on instead."""
        route = self._route
        assert route is not None
        self._broken, self._attempts = reason, 0
        if not self._is_alive(route.placement.head):
            self._lose_head(route, reason)
        if self._change is not None:
            self._announce("degraded", f"{reason}; the change under way replaces the route")
            return
        self._place(now_s, "failover", reason)

    def _lose_head(self, route: Route, reason: str) -> None:
        """Give up what only the head knew: its running requests. The old shards are of no more use."""
        self._out.append(FailRequests(reason=f"{reason}; it was the head, which held the running requests"))
        self._retire(route)
        self._route = None

    def _on_stalled(self, event: Stalled) -> None:
        """Replace a ring that does not answer although its nodes seem alive.

        First another placement, or the same one made anew; if that stalls too, one without any of the ring's
        other nodes.
        """
        route = self._route
        if route is None or event.epoch != route.epoch or self._change is not None:
            return
        self._stalls += 1
        found = (*self._crossings(route), _crossing(STALL, "route", f"the ring stalls: {event.detail}"))
        if any(crossing.trigger == NODE_LOSS for crossing in found):
            self._consider(event.now_s, found)
            return
        suspects = frozenset(route.placement.nodes[1:]) if self._stalls > 1 else frozenset()
        choice = self._weigh(route, found, avoid=suspects)
        placement = route.placement if choice.placement is None else choice.placement
        verdict = REMAKE if placement == route.placement else choice.verdict
        reason = f"{found[-1].reason}. {choice.reason}"
        self._decide_change(event.now_s, "failover", reason, found, choice, verdict=verdict)
        self._begin(event.now_s, placement, found[-1].reason)

    def _on_tick(self, event: Tick) -> None:
        change = self._change
        if change is None:
            return
        preparing = change.step is Step.PREPARING
        limit_s = self.spec.prepare_timeout_s if preparing else self.spec.commit_timeout_s
        if event.now_s - change.since_s > limit_s:
            what = "not ready" if preparing else "no commit"
            self._refuse(event.now_s, dict.fromkeys(sorted(change.waiting), f"{what} within {limit_s:g} s"))

    def _on_undeploy(self, event: UndeployRequested) -> None:
        self._broken = self._broken or event.reason
        self._abort(event.now_s, event.reason)
        self._out.append(FailRequests(reason=f"the deployment is taken down: {event.reason}"))
        if self._route is not None:
            self._retire(self._route)
            self._route = None
        self._decide(event.now_s, "deployment", "retired", event.reason)
        self._announce("retired", event.reason)

    # Records

    def _announce(self, state: str, reason: str) -> None:
        self._state = state
        route = self._route
        self._out.append(
            Announce(
                state=state,
                reason=reason,
                epoch=route.epoch if route is not None else None,
                placement=route.placement if route is not None else None,
            )
        )

    def _keep(
        self,
        now_s: float,
        reason: str,
        found: tuple[Crossing, ...],
        *,
        code: str,
        choice: Choice | None = None,
    ) -> None:
        where = tuple(sorted((crossing.trigger, crossing.where) for crossing in found))
        if self._is_news((KEEP, code, where), now_s):
            self._decide_change(now_s, "reconfigure", reason, found, choice)

    def _is_news(self, key: object, now_s: float) -> bool:
        """Say whether a verdict differs from the last one recorded, or that is long ago; remember it."""
        last = self._last_kept
        if last is not None and last[0] == key and now_s - last[1] < RECORD_INTERVAL_S:
            return False
        self._last_kept = (key, now_s)
        return True

    def _decide_change(
        self,
        now_s: float,
        kind: str,
        reason: str,
        found: tuple[Crossing, ...],
        choice: Choice | None,
        *,
        verdict: str | None = None,
    ) -> None:
        assert self._route is not None
        self._decide(
            now_s,
            kind,
            verdict or (choice.verdict if choice is not None else KEEP),
            reason,
            inputs=self._route_inputs(self._route.placement),
            crossings=found,
            alternatives=choice.alternatives() if choice is not None else (),
        )

    def _route_inputs(self, placement: Placement) -> dict[str, Json]:
        return {
            **describe_route(placement, self._nodes, self._network),
            "measured_at_s": self._network.taken_at_s,
            "latency_s": self._latency.value,
            "private": self._private,
            "min_nodes": self.spec.min_nodes,
            "weights": to_json(self.spec.weights),
            "thresholds": to_json(self.spec.thresholds),
        }

    def _decide(
        self,
        now_s: float,
        kind: str,
        verdict: str,
        reason: str,
        *,
        inputs: dict[str, Json] | None = None,
        crossings: tuple[Crossing, ...] = (),
        alternatives: tuple[Alternative, ...] = (),
    ) -> None:
        decision = Decision(
            kind=kind,
            subject=self.spec.deployment,
            at_s=now_s,
            verdict=verdict,
            reason=reason,
            inputs=inputs or {},
            crossings=crossings,
            alternatives=alternatives,
        )
        self._out.append(Record(decision=decision))


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


def _names(nodes: Iterable[NodeState]) -> list[Json]:
    return [node.name for node in nodes]
