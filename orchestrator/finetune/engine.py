"""Decide what a fine-tuning job does next: events in, instructions out, no I/O (Pekel 2025, Algorithm 1).

First the network is measured and the policy selects whom to begin with; the others get nothing until they
are admitted or the job is done. An epoch: those that the policy names train from the newest version
(StartRound; who is not loaded yet is loaded first, and begins as soon as it is); valid updates are added up
as they come (Accept). When each has answered, is lost, or has run out of time, or when the policy's quorum
has answered, the mean of what contributed, weighted by samples, becomes the next version (Aggregate). The
nodes that took part are scored, the policy chooses, and the next epoch begins. Evaluation overlaps it;
eliminated nodes get new versions in the background. Who was not waited for trains on, is discarded when it
answers, and is free then. A node that is lost, hangs or sends garbage costs its own contribution and nothing
else; if nobody is left, those eliminated or never selected are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import isfinite
from random import Random
from typing import Any

from orchestrator.core.decisions import Alternative, Decision, NodeScore
from orchestrator.core.energy import energy, total
from orchestrator.core.errors import InvalidValue
from orchestrator.core.jsonable import Json, to_json
from orchestrator.core.model import Network
from orchestrator.core.selection import Choice, RoundPlan
from orchestrator.finetune.messages import (
    Accept,
    Aggregate,
    Aggregated,
    Announce,
    Cancelled,
    Contribution,
    Discard,
    DriverFailed,
    EpochReport,
    Evaluate,
    Evaluated,
    Event,
    Fail,
    Finish,
    Instruction,
    JobSpec,
    JobStarted,
    LoadNode,
    MetricsTaken,
    NodeBack,
    NodeLoaded,
    NodeLost,
    NodeSynced,
    Record,
    ReportEpoch,
    RequestFailed,
    StartRound,
    Summary,
    SyncNode,
    TakeMetrics,
    Tick,
    UpdateArrived,
)
from orchestrator.finetune.selecting import Selecting
from orchestrator.finetune.snapshot import Snapshot, random_state, restore_random
from orchestrator.finetune.state import (
    BEFORE,
    ELIMINATED,
    UNSELECTED,
    Health,
    Node,
    Phase,
    Round,
    epoch_report,
    invalid,
)

SYNC_ATTEMPTS = 3
_AGAIN = 1.02
_MANY = 1000
"""A round of more nodes asks the policy whether it may close not at every answer, but as time passes."""


class Engine:
    """One fine-tuning job. Feed it every event through `handle`, carry out what it returns, in order."""

    def __init__(self, spec: JobSpec, rng: Random) -> None:
        """Take a job.

        Raises:
            InvalidPolicy: the policy is unknown or its condition on nodes and epochs does not hold.
        """
        self.spec = spec
        self._random = random_state(rng)
        self._selecting = Selecting(spec, rng)
        self._nodes = {name: Node(name=name) for name in spec.nodes}
        self._phase = Phase.NEW
        self._training = False
        self._round = Round(epoch=0, started_at_s=0.0, active=(), waiting=set())
        self._measuring_since_s = 0.0
        self._version = 0
        self._losses: dict[int, float] = {}
        self._reports: dict[int, EpochReport] = {}
        self._now_s = 0.0
        self._started_at_s = 0.0
        self._elapsed_s = 0.0
        self._resumed = False
        self._completed_at_s: float | None = None
        self._out: list[Instruction] = []
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            JobStarted: self._on_started,
            NodeLoaded: self._on_loaded,
            UpdateArrived: self._on_update,
            RequestFailed: self._on_request_failed,
            NodeLost: self._on_lost,
            NodeBack: self._on_back,
            Aggregated: self._on_aggregated,
            MetricsTaken: self._on_metrics,
            Evaluated: self._on_evaluated,
            NodeSynced: self._on_synced,
            Tick: self._on_tick,
            DriverFailed: lambda event: self._fail(event.now_s, event.reason),
            Cancelled: lambda event: self._fail(event.now_s, event.reason, cancelled=True),
        }

    @property
    def ended(self) -> bool:
        """Say whether the job is over; later events change nothing."""
        return self._phase is Phase.ENDED

    @property
    def epoch(self) -> int:
        """Return the epoch in progress."""
        return self._round.epoch

    @property
    def version(self) -> int:
        """Return the newest version of the parameters."""
        return self._version

    @property
    def active(self) -> tuple[str, ...]:
        """Return the nodes that take part."""
        return tuple(name for name, node in self._nodes.items() if node.out is None)

    @property
    def wakes_at_s(self) -> float | None:
        """Return when a Tick could close the round in progress although answers are awaited; None: it could
        not.

        Who sends one each second need not look. As time passes, a policy may become certain at any moment:
        it is asked again after each fiftieth of the round so far.
        """
        current, plan = self._round, self._round.plan
        if self._phase is not Phase.ROUND or not current.waiting or not current.updates:
            return None
        times = [] if plan.deadline_s is None else [plan.deadline_s]
        if plan.quorum is not None and len(current.updates) >= plan.quorum:
            elapsed_s = self._now_s - current.started_at_s
            times.append(max(plan.patience_s, elapsed_s * _AGAIN))
        return current.started_at_s + min(times) if times else None

    def snapshot(self, now_s: float) -> Snapshot:
        """Return all that `restore` needs to go on from the newest version.

        To be taken when an epoch was reported, between two events: the choice of the nodes that train the
        next epoch is in it, their answers are not.
        """
        return Snapshot(
            version=self._version,
            elapsed_s=now_s - self._started_at_s,
            completed_s=None if self._completed_at_s is None else self._completed_at_s - self._started_at_s,
            losses=dict(self._losses),
            reports=tuple(report for version, report in self._reports.items() if version not in self._losses),
            out={name: node.out for name, node in self._nodes.items() if node.out is not None},
            random=self._random,
            policy=self._selecting.snapshot(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Begin where `snapshot` was taken, at the next JobStarted; only before the first event.

        Nodes are loaded anew. A failure of before keeps a node out only where rejoin is off, as with a node
        that was lost and is back.
        """
        if self._phase is not Phase.NEW:
            raise InvalidValue(f"job {self.spec.job} has begun; only a new engine can be restored")
        self._resumed = True
        self._version, self._elapsed_s = snapshot.version, snapshot.elapsed_s
        self._losses = dict(snapshot.losses)
        self._reports = {report.version: report for report in snapshot.reports}
        if snapshot.completed_s is not None:
            self._completed_at_s = snapshot.completed_s
        for name, reason in snapshot.out.items():
            if name in self._nodes and (reason in (ELIMINATED, UNSELECTED) or not self.spec.rejoin):
                self._nodes[name].out = reason
        rng = Random()
        restore_random(rng, snapshot.random)
        self._random = snapshot.random
        self._selecting = Selecting(self.spec, rng)
        self._selecting.restore(snapshot.policy)

    def handle(self, event: Event) -> list[Instruction]:
        """Take `event`, return what is to be done, in order."""
        if self.ended:
            return self._after_the_end(event)
        self._now_s = event.now_s
        self._handlers[type(event)](event)
        instructions, self._out = self._out, []
        return instructions

    def _after_the_end(self, event: Event) -> list[Instruction]:
        if isinstance(event, UpdateArrived):
            return [Discard(node=event.node, epoch=event.epoch, reason="the job is over")]
        return []

    # Beginning

    def _on_started(self, event: JobStarted) -> None:
        """Measure first: a policy may want to choose before anything is sent."""
        self._phase = Phase.STARTING
        self._started_at_s = event.now_s - self._elapsed_s
        if self._completed_at_s is not None:
            self._completed_at_s += self._started_at_s
        self._selecting.workload = event.workload
        if self._version not in self._losses:
            self._out.append(Evaluate(version=self._version))
        self._take_metrics(BEFORE, event.now_s)

    def _begin(self, now_s: float) -> None:
        """Begin with those that the policy selects."""
        if self._resumed:
            self._resume(now_s)
            return
        self._decide(now_s, "job", "start", self._describe_job(), inputs=self._job_inputs())
        there = tuple(node.name for node in self._nodes.values() if node.health is not Health.LOST)
        selection = self._selecting.select(there)
        selected = frozenset(selection.nodes)
        chosen = [name for name in there if name in selected] or list(there)
        for name in there:
            self._nodes[name].out = UNSELECTED
        for name in chosen:
            self._nodes[name].out = None
        self._announce("loading", f"sending model and data to {len(chosen)} nodes")
        if len(chosen) < len(there):
            self._decide(
                now_s,
                "select",
                f"begin with {', '.join(chosen)}",
                selection.reason,
                inputs=dict(selection.inputs),
                alternatives=selection.alternatives,
            )
        self._start_round(0, now_s)

    def _resume(self, now_s: float) -> None:
        """Load who takes part or is eliminated with the newest version; go on with its epoch, or end."""
        trained = self._version == self.spec.epochs
        goes_on = "all epochs are done" if trained else f"goes on with epoch {self._version}"
        reason = f"{goes_on}, from version {self._version} after {self._elapsed_s:.1f} s"
        self._announce("loading", f"resumed: {reason}")
        self._decide(now_s, "job", "resume", reason, inputs=self._job_inputs())
        if trained:
            self._settle(now_s)
            return
        self._start_round(self._version, now_s)
        for node in self._nodes.values():
            if node.health is Health.EMPTY and node.out not in (None, UNSELECTED):
                self._load(node, now_s)

    def _load(self, node: Node, now_s: float) -> None:
        settling = self._phase is Phase.SETTLING
        node.health, node.since_s = Health.LOADING, now_s
        node.has_data = node.has_data or not settling
        self._out.append(LoadNode(node=node.name, version=self._version, data=not settling))

    def _take_metrics(self, epoch: int, now_s: float) -> None:
        self._measuring_since_s = now_s
        self._out.append(TakeMetrics(epoch=epoch))

    def _on_loaded(self, event: NodeLoaded) -> None:
        node = self._nodes.get(event.node)
        if node is None or node.health not in (Health.LOADING, Health.SILENT):
            return
        if node.health is Health.SILENT:
            self._heard_again(node, event.now_s)
        elif node.name in self._round.waiting:
            self._round.load_s[node.name] = event.now_s - self._round.started_at_s
        node.transfer_s += event.now_s - node.since_s
        node.health, node.version = Health.READY, event.version
        self._go_on(node, event.now_s)

    def _go_on(self, node: Node, now_s: float) -> None:
        """Give a node that came free what waits for it: the round in progress, or a newer version."""
        if node.name in self._round.waiting and self._phase is Phase.ROUND:
            self._start_node(node, now_s)
        else:
            self._sync(now_s)
        self._try_finish(now_s)

    # An epoch

    def _start_round(self, epoch: int, now_s: float) -> None:
        taking_part = [node for node in self._nodes.values() if node.out is None]
        free = [node for node in taking_part if node.is_free]
        busy = [node for node in taking_part if node.is_busy]
        if not free and not busy:
            self._recall(epoch, now_s, self._list_absent())
            return
        plan = self._plan_round(epoch, free or busy)
        named = frozenset(plan.participants)
        asked = [node for node in free or busy if node.name in named] or free or busy
        names = tuple(node.name for node in asked)
        self._phase = Phase.ROUND
        loaded = self._loaded(names)
        self._round = Round(
            epoch=epoch,
            started_at_s=now_s,
            active=names,
            waiting=set(names),
            plan=plan,
            predicted_s=self._selecting.predict(names, loaded),
        )
        if len(asked) < len(free or busy):
            self._record_plan(now_s, names, plan)
        for node in asked:
            if node.health is Health.EMPTY:
                self._load(node, now_s)
            elif node.health is Health.READY:
                self._start_node(node, now_s)
        self._sync(now_s)

    def _plan_round(self, epoch: int, nodes: list[Node]) -> RoundPlan:
        names = tuple(node.name for node in nodes)
        return self._selecting.plan_round(epoch, names, self._loaded(names))

    def _loaded(self, names: tuple[str, ...]) -> frozenset[str]:
        return frozenset(name for name in names if self._nodes[name].health is not Health.EMPTY)

    def _recall(self, epoch: int, now_s: float, why: str) -> None:
        """Call others for `epoch`, as nobody else can train it; fail if there are none."""
        spare = [node for node in self._nodes.values() if node.is_spare]
        asked = self._round.active if self._round.epoch == epoch else ()
        resting = [n for n in self._nodes.values() if n.out is None and n.is_free and n.name not in asked]
        if not spare and not resting:
            self._fail(now_s, f"no node contributed to epoch {epoch}: {why}")
            return
        for node in spare:
            node.out = None
        names = ", ".join(node.name for node in (*spare, *resting))
        self._decide(now_s, "node", "recalled", f"{names}: nobody else can train epoch {epoch} ({why})")
        self._start_round(epoch, now_s)

    def _start_node(self, node: Node, now_s: float) -> None:
        if not self._training:
            self._training = True
            self._announce("training", f"{node.name} is loaded and trains")
        node.health, node.since_s = Health.TRAINING, now_s
        node.trains_epoch, node.trains_version = self._round.epoch, self._version
        self._out.append(StartRound(node=node.name, epoch=self._round.epoch, version=self._version))

    def _on_update(self, event: UpdateArrived) -> None:
        node = self._nodes.get(event.node)
        if node is None or not self._is_expected(node, event):
            self._discard(event, "it came too late or was not asked for")
            if node is not None:
                self._take_late(node, event)
            return
        node.health, node.version = Health.READY, max(node.version, self._version)
        reason = invalid(event)
        if reason is not None:
            self._discard(event, reason)
            self._strike(node, event.now_s, reason)
            return
        node.strikes = 0
        self._account(node, event)
        self._round.waiting.discard(node.name)
        self._round.updates[node.name] = event
        self._round.answered_s[node.name] = event.now_s - self._round.started_at_s
        self._out.append(Accept(node=node.name, epoch=event.epoch, weight=float(event.samples)))
        self._try_close(event.now_s)

    def _take_late(self, node: Node, event: UpdateArrived) -> None:
        """Free a node that was not waited for, or take back one that had run out of time."""
        if node.health is Health.SILENT:
            self._heard_again(node, event.now_s)
        elif node.health is Health.TRAINING and event.epoch == node.trains_epoch:
            node.health, node.version = Health.READY, max(node.version, node.trains_version)
            self._account(node, event)
            self._go_on(node, event.now_s)

    def _account(self, node: Node, event: UpdateArrived) -> None:
        """Add what a node spent on the update that it sends."""
        train_s = event.train_s if invalid(event) is None and event.train_s is not None else 0.0
        node.compute_s += train_s
        node.transfer_s += max(0.0, event.now_s - node.since_s - train_s)

    def _is_expected(self, node: Node, event: UpdateArrived) -> bool:
        return (
            self._phase is Phase.ROUND
            and node.health is Health.TRAINING
            and node.name in self._round.waiting
            and event.epoch == self._round.epoch
        )

    def _discard(self, event: UpdateArrived, reason: str) -> None:
        self._out.append(Discard(node=event.node, epoch=event.epoch, reason=reason))

    def _try_close(self, now_s: float) -> None:
        """End the epoch's collecting once nobody's answer is awaited any more."""
        if self._phase is not Phase.ROUND or (self._round.waiting and not self._closes_early(now_s)):
            return
        if not self._round.updates:
            reasons = "; ".join(f"{node}: {reason}" for node, reason in self._round.failed.items())
            self._recall(self._round.epoch, now_s, reasons)
            return
        self._phase, self._round.closed_at_s = Phase.CLOSING, now_s
        self._round.late = tuple(name for name in self._round.active if name in self._round.waiting)
        self._round.waiting.clear()
        self._selecting.closed(self._round)
        self._out.append(
            Aggregate(
                epoch=self._round.epoch,
                base_version=self._version,
                new_version=self._version + 1,
                outer_learning_rate=self.spec.outer_learning_rate,
                contributions=tuple(
                    Contribution(node=name, weight=float(self._round.updates[name].samples))
                    for name in self._round.active
                    if name in self._round.updates
                ),
            )
        )
        self._take_metrics(self._round.epoch, now_s)

    def _closes_early(self, now_s: float) -> bool:
        """Say whether the round ends although answers are still awaited, and record why."""
        current, plan = self._round, self._round.plan
        elapsed_s = now_s - current.started_at_s
        if not current.updates:
            return False
        if plan.deadline_s is not None and elapsed_s >= plan.deadline_s:
            why: str | None = f"the deadline of {plan.deadline_s:g} s has passed"
        elif plan.quorum is None or len(current.updates) < plan.quorum or elapsed_s < plan.patience_s:
            return False
        else:
            if len(current.active) > _MANY and elapsed_s < current.asked_after_s * _AGAIN:
                return False
            current.asked_after_s = elapsed_s
            why = self._selecting.may_close(current, now_s)
        if why is not None:
            self._decide(now_s, "round", f"close without {', '.join(sorted(current.waiting))}", why)
        return why is not None

    def _on_aggregated(self, event: Aggregated) -> None:
        expected = self._phase is Phase.CLOSING and not self._round.aggregated
        if not expected or event.version != self._version + 1:
            return
        self._version, self._round.aggregated = event.version, True
        self._out.append(Evaluate(version=event.version))
        self._try_choose(event.now_s)

    def _on_metrics(self, event: MetricsTaken) -> None:
        if self._phase is Phase.STARTING and event.epoch == BEFORE:
            self._selecting.measured(event)
            self._begin(event.now_s)
        elif self._phase is Phase.CLOSING and event.epoch == self._round.epoch:
            self._selecting.measured(event)
            self._round.metrics = event
            self._try_choose(event.now_s)

    def _try_choose(self, now_s: float) -> None:
        """Score and choose once the new version exists and the metrics are here; then go on."""
        if not self._round.aggregated or self._round.metrics is None:
            return
        last = self._round.epoch == self.spec.epochs - 1
        scores = self._selecting.scores(self._round, self._took_part())
        choice = _keep_last_epoch(scores) if last else self._choose(scores)
        self._apply(choice)
        self._record_choice(now_s, scores, choice)
        self._report(now_s, choice)
        if last:
            self._settle(now_s)
        else:
            self._start_round(self._round.epoch + 1, now_s)

    def _took_part(self) -> list[str]:
        """List those that contributed or were not waited for, and can go on; who was lost has left anyway."""
        current, late = self._round, frozenset(self._round.late)
        return [
            name
            for name in current.active
            if (name in current.updates and self._nodes[name].health is Health.READY)
            or (name in late and (self._nodes[name].is_free or self._nodes[name].is_busy))
        ]

    def _choose(self, scores: tuple[NodeScore, ...]) -> Choice:
        nodes = self._nodes.values()
        return self._selecting.choose(
            self._round,
            scores,
            eliminated=tuple(node.name for node in nodes if node.out == ELIMINATED),
            standby=tuple(n.name for n in nodes if n.out == ELIMINATED and n.health is Health.READY),
            unselected=tuple(n.name for n in nodes if n.out == UNSELECTED and n.is_free),
        )

    def _apply(self, choice: Choice) -> None:
        self._selecting.chosen(choice)
        for name in choice.eliminated:
            self._nodes[name].out = ELIMINATED
        for name in choice.readmitted:
            if self._nodes[name].out in (ELIMINATED, UNSELECTED):
                self._nodes[name].out = None

    # The end

    def _settle(self, now_s: float) -> None:
        self._phase = Phase.SETTLING
        self._announce("settling", f"bringing all nodes to version {self._version}")
        for node in self._nodes.values():
            if node.health is Health.EMPTY:
                self._load(node, now_s)
        self._sync(now_s)
        self._try_finish(now_s)

    def _on_evaluated(self, event: Evaluated) -> None:
        if not isfinite(event.loss):
            self._fail(
                event.now_s,
                f"the held-out loss of version {event.version} is {event.loss}: training diverged; "
                "lower the learning rate",
            )
            return
        self._losses[event.version] = event.loss
        if event.version == self.spec.epochs and self._completed_at_s is None:
            self._completed_at_s = event.now_s
        report = self._reports.get(event.version)
        if report is not None:
            self._out.append(ReportEpoch(report=replace(report, loss=event.loss)))
        self._try_finish(event.now_s)

    def _try_finish(self, now_s: float) -> None:
        if self._phase is not Phase.SETTLING or self._completed_at_s is None:
            return
        if any(self._is_settling(node) for node in self._nodes.values()):
            return
        self._phase = Phase.ENDED
        settled = {node.name: None for node in self._nodes.values() if node.has(self._version)}
        job_s = now_s - self._started_at_s
        spent = {
            node.name: energy(
                self.spec.power, compute_s=node.compute_s, transfer_s=node.transfer_s, job_s=job_s
            )
            for node in self._nodes.values()
        }
        summary = Summary(
            policy=self.spec.policy,
            epochs=self.spec.epochs,
            start_loss=self._losses.get(0),
            final_loss=self._losses[self._version],
            final_version=self._version,
            completion_s=self._completed_at_s - self._started_at_s,
            settle_s=max(0.0, now_s - self._completed_at_s),
            settled=tuple(settled),
            unsettled={node.name: node.absence for node in self._nodes.values() if node.name not in settled},
            energy=spent,
            energy_total=total(spent.values()),
        )
        self._announce("completed", f"final loss {summary.final_loss:.4f} after {summary.completion_s:.1f} s")
        self._out.append(Finish(summary=summary))

    def _is_settling(self, node: Node) -> bool:
        return node.syncing_since_s is not None or node.is_busy

    # Background updates

    def _sync(self, now_s: float, among: Iterable[Node] | None = None) -> None:
        """Begin a transfer to each node that is behind, idle, and has none in flight: newest version only."""
        for node in self._nodes.values() if among is None else among:
            if self._needs_sync(node):
                node.syncing_since_s = now_s
                self._out.append(SyncNode(node=node.name, version=self._version))

    def _needs_sync(self, node: Node) -> bool:
        settling = self._phase is Phase.SETTLING
        reachable = node.health is Health.READY or (settling and node.health is Health.SILENT)
        idle = node.syncing_since_s is None and node.sync_failures < SYNC_ATTEMPTS
        behind = 0 <= node.version < self._version
        return reachable and idle and behind and (settling or node.out is not None)

    def _on_synced(self, event: NodeSynced) -> None:
        node = self._nodes.get(event.node)
        if node is None or node.health is Health.LOST:
            return
        if node.syncing_since_s is not None:
            node.transfer_s += event.now_s - node.syncing_since_s
        node.version, node.syncing_since_s, node.sync_failures = max(node.version, event.version), None, 0
        if node.health is Health.SILENT:
            node.health = Health.READY
        self._sync(event.now_s, [node])
        self._try_finish(event.now_s)

    def _sync_failed(self, node: Node, now_s: float, reason: str) -> None:
        node.syncing_since_s, node.sync_reason = None, reason
        node.sync_failures += 1
        self._sync(now_s)
        self._try_finish(now_s)

    # What goes wrong with nodes

    def _on_request_failed(self, event: RequestFailed) -> None:
        node = self._nodes.get(event.node)
        if node is None or node.health is Health.LOST:
            return
        if event.request == "sync":
            self._sync_failed(node, event.now_s, event.reason)
        elif event.request == "load" and node.health is Health.LOADING:
            self._drop(node, event.now_s, "load-failed", f"could not be loaded: {event.reason}")
        elif event.request == "round" and node.health is Health.TRAINING:
            node.health = Health.READY
            self._strike(node, event.now_s, event.reason)

    def _drop(self, node: Node, now_s: float, verdict: str, reason: str) -> None:
        """Leave a node out until it comes back by itself."""
        node.health, node.out = Health.SILENT, node.out or reason
        self._miss(node, now_s, verdict, reason)

    def _strike(self, node: Node, now_s: float, reason: str) -> None:
        """Take an answer that is no good; too many in a row leave the node out."""
        node.strikes += 1
        if node.strikes >= self.spec.invalid_limit:
            node.out = f"{node.strikes} invalid answers in a row, the last: {reason}"
        self._miss(node, now_s, "refused", reason)

    def _on_lost(self, event: NodeLost) -> None:
        node = self._nodes.get(event.node)
        if node is None or node.health is Health.LOST:
            return
        node.health, node.syncing_since_s, node.version = Health.LOST, None, -1
        self._miss(node, event.now_s, "lost", event.reason)
        self._try_finish(event.now_s)

    def _miss(self, node: Node, now_s: float, verdict: str, reason: str) -> None:
        """Record a node's failure; its contribution to the epoch, if awaited, will not come."""
        self._decide(now_s, "node", verdict, f"{node.name}: {reason}", inputs=self._node_inputs(node))
        if node.name in self._round.waiting:
            self._round.waiting.discard(node.name)
            self._round.failed[node.name] = f"{verdict}: {reason}"
            self._try_close(now_s)

    def _on_back(self, event: NodeBack) -> None:
        node = self._nodes.get(event.node)
        if node is None or node.health is not Health.LOST:
            return
        node.strikes = node.sync_failures = 0
        node.health = Health.EMPTY
        if self._phase not in (Phase.ROUND, Phase.CLOSING, Phase.SETTLING):
            return
        self._allow_again(node, event.now_s, "back")
        if node.has_data or self._phase is Phase.SETTLING:
            self._load(node, event.now_s)

    def _heard_again(self, node: Node, now_s: float) -> None:
        """Take back a node that had run out of time and answers after all."""
        node.health = Health.READY
        self._allow_again(node, now_s, "answers-again")
        self._sync(now_s)

    def _allow_again(self, node: Node, now_s: float, verdict: str) -> None:
        if node.out == ELIMINATED:
            reason = f"{node.name} was eliminated and stays so; it gets the updates"
        elif node.out == UNSELECTED:
            reason = f"{node.name} is not selected; it gets the model at the end"
        elif self.spec.rejoin:
            node.out = None
            reason = f"{node.name} takes part again from the next epoch it is ready for"
        else:
            node.out = "it failed before and rejoin is off"
            reason = f"{node.name} gets the updates but takes no part: rejoin is off"
        self._decide(now_s, "node", verdict, reason, inputs=self._node_inputs(node))

    def _on_tick(self, event: Tick) -> None:
        for node in self._nodes.values():
            if not self.ended:
                self._check_deadlines(node, event.now_s)
        self._try_close(event.now_s)
        if self._metrics_overdue(event.now_s):
            nothing = MetricsTaken(
                now_s=event.now_s,
                epoch=BEFORE if self._phase is Phase.STARTING else self._round.epoch,
                nodes=(),
                network=Network(taken_at_s=event.now_s),
            )
            self._on_metrics(nothing)

    def _metrics_overdue(self, now_s: float) -> bool:
        waiting = self._phase is Phase.STARTING or (
            self._phase is Phase.CLOSING and self._round.metrics is None
        )
        return waiting and now_s - self._measuring_since_s > self.spec.metrics_timeout_s

    def _check_deadlines(self, node: Node, now_s: float) -> None:
        waited_s = now_s - node.since_s
        if node.health is Health.TRAINING and waited_s > self.spec.round_timeout_s:
            self._drop(node, now_s, "hung", f"no update within {self.spec.round_timeout_s:g} s")
        elif node.health is Health.LOADING and waited_s > self.spec.load_timeout_s:
            self._drop(node, now_s, "hung", f"not loaded within {self.spec.load_timeout_s:g} s")
            self._try_finish(now_s)
        elif node.syncing_since_s is not None and now_s - node.syncing_since_s > self.spec.sync_timeout_s:
            node.sync_failures = SYNC_ATTEMPTS
            self._sync_failed(node, now_s, f"no answer within {self.spec.sync_timeout_s:g} s")

    def _fail(self, now_s: float, reason: str, *, cancelled: bool = False) -> None:
        if self.ended:
            return
        self._phase = Phase.ENDED
        state = "cancelled" if cancelled else "failed"
        self._decide(now_s, "job", state, reason)
        self._announce(state, reason)
        self._out.append(Fail(reason=reason, cancelled=cancelled))

    # Records

    def _announce(self, state: str, reason: str) -> None:
        self._out.append(Announce(state=state, reason=reason))

    def _decide(
        self,
        now_s: float,
        kind: str,
        verdict: str,
        reason: str,
        *,
        inputs: dict[str, Json] | None = None,
        scores: tuple[NodeScore, ...] = (),
        alternatives: tuple[Alternative, ...] = (),
    ) -> None:
        decision = Decision(
            kind=kind,
            subject=self.spec.job,
            at_s=now_s,
            verdict=verdict,
            reason=reason,
            inputs=inputs or {},
            scores=scores,
            alternatives=alternatives,
        )
        self._out.append(Record(decision=decision))

    def _record_plan(self, now_s: float, names: tuple[str, ...], plan: RoundPlan) -> None:
        inputs = {"epoch": self._round.epoch, "quorum": plan.quorum, **plan.inputs}
        self._decide(now_s, "round", f"ask {', '.join(names)}", plan.reason, inputs=inputs)

    def _record_choice(self, now_s: float, scores: tuple[NodeScore, ...], choice: Choice) -> None:
        out = choice.eliminated
        back = f"readmit {', '.join(choice.readmitted)}" if choice.readmitted else ""
        verdict = f"eliminate {', '.join(out)}" if out else back or "keep all"
        metrics = self._round.metrics
        inputs: dict[str, Json] = {
            "epoch": self._round.epoch,
            "policy": self.spec.policy,
            "score": self.spec.score,
            "time_criterion": self.spec.time_criterion,
            "weights": to_json(self.spec.weights),
            "measured_at_s": metrics.network.taken_at_s if metrics is not None else None,
            "eliminated": list(out),
            "readmitted": list(choice.readmitted),
            "late": list(self._round.late),
            "failed": to_json(self._round.failed),
        }
        self._decide(
            now_s,
            "eliminate",
            verdict,
            choice.reason,
            inputs=inputs,
            scores=scores,
            alternatives=choice.alternatives,
        )

    def _report(self, now_s: float, choice: Choice) -> None:
        loss = self._losses.get(self._version)
        report = epoch_report(self._round, self._version, choice, now_s, loss)
        self._reports[self._version] = report
        self._out.append(ReportEpoch(report=report))

    def _describe_job(self) -> str:
        return f"{self.spec.policy} over {len(self._nodes)} nodes for {self.spec.epochs} epochs"

    def _job_inputs(self) -> dict[str, Json]:
        document = to_json(self.spec)
        assert isinstance(document, dict)
        return document

    def _node_inputs(self, node: Node) -> dict[str, Json]:
        return {"node": node.name, "epoch": self._round.epoch, "strikes": node.strikes, "out": node.out}

    def _list_absent(self) -> str:
        return "; ".join(f"{node.name} {node.out or node.health.value}" for node in self._nodes.values())


def _keep_last_epoch(scores: tuple[NodeScore, ...]) -> Choice:
    return Choice(eliminated=(), reason=f"the last epoch: all {len(scores)} stay")
