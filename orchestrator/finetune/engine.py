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

from collections.abc import Callable
from math import isfinite
from random import Random
from typing import Any

from orchestrator.core.decisions import NodeScore
from orchestrator.core.errors import InvalidValue
from orchestrator.core.model import Network
from orchestrator.core.selection import Choice
from orchestrator.finetune.background import Background
from orchestrator.finetune.journal import Journal
from orchestrator.finetune.messages import (
    Aggregated,
    Cancelled,
    Discard,
    DriverFailed,
    Evaluate,
    Evaluated,
    Event,
    Instruction,
    JobSpec,
    JobStarted,
    MetricsTaken,
    NodeBack,
    NodeLoaded,
    NodeLost,
    NodeSynced,
    RequestFailed,
    TakeMetrics,
    Tick,
    UpdateArrived,
)
from orchestrator.finetune.rounds import Rounds
from orchestrator.finetune.selecting import Selecting
from orchestrator.finetune.snapshot import Snapshot, random_state, restore_random
from orchestrator.finetune.state import BEFORE, ELIMINATED, UNSELECTED, Health, JobState, Node, Phase


class Engine:
    """One fine-tuning job. Feed it every event through `handle`, carry out what it returns, in order.

    Here is the course of the job; `Rounds` has its epochs, `Background` what goes to nodes beside them,
    `Selecting` the policy, and `Journal` what is given out.
    """

    def __init__(self, spec: JobSpec, rng: Random) -> None:
        """Take a job.

        Raises:
            InvalidPolicy: the policy is unknown or its condition on nodes and epochs does not hold.
        """
        self.spec = spec
        self._random = random_state(rng)
        self._now_s = 0.0
        self._resumed = False
        self._job = JobState(spec=spec, nodes={name: Node(name=name) for name in spec.nodes})
        self._journal = Journal(self._job)
        self._background = Background(self._job, self._journal)
        self._choose_with(Selecting(spec, rng))
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            JobStarted: self._on_started,
            NodeLoaded: self._on_loaded,
            UpdateArrived: lambda event: self._rounds.take(self._node(event.node), event),
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
        return self._job.ended

    @property
    def epoch(self) -> int:
        """Return the epoch in progress."""
        return self._job.round.epoch

    @property
    def version(self) -> int:
        """Return the newest version of the parameters."""
        return self._job.version

    @property
    def active(self) -> tuple[str, ...]:
        """Return the nodes that take part."""
        return tuple(name for name, node in self._job.nodes.items() if node.out is None)

    @property
    def wakes_at_s(self) -> float | None:
        """Return when a Tick could close the round in progress although answers are awaited; None: it could
        not.

        Who sends one each second need not look. As time passes, a policy may become certain at any moment:
        it is asked again after each fiftieth of the round so far.
        """
        return self._rounds.wakes_at_s(self._now_s)

    def snapshot(self, now_s: float) -> Snapshot:
        """Return all that `restore` needs to go on from the newest version.

        To be taken when an epoch was reported, between two events: the choice of the nodes that train the
        next epoch is in it, their answers are not.
        """
        job = self._job
        return Snapshot(
            version=job.version,
            elapsed_s=now_s - job.started_at_s,
            completed_s=None if job.completed_at_s is None else job.completed_at_s - job.started_at_s,
            losses=dict(job.losses),
            reports=tuple(report for version, report in job.reports.items() if version not in job.losses),
            out={name: node.out for name, node in job.nodes.items() if node.out is not None},
            random=self._random,
            policy=self._selecting.snapshot(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Begin where `snapshot` was taken, at the next JobStarted; only before the first event.

        Nodes are loaded anew. A failure of before keeps a node out only where rejoin is off, as with a node
        that was lost and is back.
        """
        job = self._job
        if job.phase is not Phase.NEW:
            raise InvalidValue(f"job {self.spec.job} has begun; only a new engine can be restored")
        self._resumed = True
        job.version, job.elapsed_s = snapshot.version, snapshot.elapsed_s
        job.losses = dict(snapshot.losses)
        job.reports = {report.version: report for report in snapshot.reports}
        if snapshot.completed_s is not None:
            job.completed_at_s = snapshot.completed_s
        for name, reason in snapshot.out.items():
            if name in job.nodes and (reason in (ELIMINATED, UNSELECTED) or not self.spec.rejoin):
                job.nodes[name].out = reason
        rng = Random()
        restore_random(rng, snapshot.random)
        self._random = snapshot.random
        self._choose_with(Selecting(self.spec, rng))
        self._selecting.restore(snapshot.policy)

    def handle(self, event: Event) -> list[Instruction]:
        """Take `event`, return what is to be done, in order."""
        if self.ended:
            return self._after_the_end(event)
        self._now_s = event.now_s
        self._handlers[type(event)](event)
        self._try_finish(event.now_s)
        return self._journal.take()

    def _after_the_end(self, event: Event) -> list[Instruction]:
        if isinstance(event, UpdateArrived):
            return [Discard(node=event.node, epoch=event.epoch, reason="the job is over")]
        return []

    def _choose_with(self, selecting: Selecting) -> None:
        self._selecting = selecting
        self._rounds = Rounds(self._job, self._journal, selecting, self._background)

    def _node(self, name: str) -> Node | None:
        return self._job.nodes.get(name)

    # Beginning

    def _on_started(self, event: JobStarted) -> None:
        """Measure first: a policy may want to choose before anything is sent."""
        job = self._job
        job.phase = Phase.STARTING
        job.started_at_s = event.now_s - job.elapsed_s
        if job.completed_at_s is not None:
            job.completed_at_s += job.started_at_s
        self._selecting.workload = event.workload
        if job.version not in job.losses:
            self._journal.add(Evaluate(version=job.version))
        job.measuring_since_s = event.now_s
        self._journal.add(TakeMetrics(epoch=BEFORE))

    def _begin(self, now_s: float) -> None:
        """Begin with those that the policy selects."""
        if self._resumed:
            self._resume(now_s)
            return
        self._journal.begins(now_s)
        there = tuple(node.name for node in self._job.nodes.values() if node.health is not Health.LOST)
        selection = self._selecting.select(there)
        selected = frozenset(selection.nodes)
        chosen = [name for name in there if name in selected] or list(there)
        for name in there:
            self._job.nodes[name].out = UNSELECTED
        for name in chosen:
            self._job.nodes[name].out = None
        self._journal.announce("loading", f"sending model and data to {len(chosen)} nodes")
        if len(chosen) < len(there):
            self._journal.selection(now_s, chosen, selection)
        self._rounds.start(0, now_s)

    def _resume(self, now_s: float) -> None:
        """Load who takes part or is eliminated with the newest version; go on with its epoch, or end."""
        job = self._job
        trained = job.version == self.spec.epochs
        goes_on = "all epochs are done" if trained else f"goes on with epoch {job.version}"
        self._journal.resumes(now_s, f"{goes_on}, from version {job.version} after {job.elapsed_s:.1f} s")
        if trained:
            self._settle(now_s)
            return
        self._rounds.start(job.version, now_s)
        for node in job.nodes.values():
            if node.health is Health.EMPTY and node.out not in (None, UNSELECTED):
                self._rounds.load(node, now_s)

    def _on_loaded(self, event: NodeLoaded) -> None:
        node, current = self._node(event.node), self._job.round
        if node is None or node.health not in (Health.LOADING, Health.SILENT):
            return
        if node.health is Health.SILENT:
            self._rounds.heard_again(node, event.now_s)
        elif node.name in current.waiting:
            current.load_s[node.name] = event.now_s - current.started_at_s
        node.transfer_s += event.now_s - node.since_s
        node.health, node.version = Health.READY, event.version
        self._rounds.go_on(node, event.now_s)

    # Between two epochs

    def _on_aggregated(self, event: Aggregated) -> None:
        job = self._job
        expected = job.phase is Phase.CLOSING and not job.round.aggregated
        if not expected or event.version != job.version + 1:
            return
        job.version, job.round.aggregated = event.version, True
        self._journal.add(Evaluate(version=event.version))
        self._try_choose(event.now_s)

    def _on_metrics(self, event: MetricsTaken) -> None:
        job = self._job
        if job.phase is Phase.STARTING and event.epoch == BEFORE:
            self._selecting.measured(event)
            self._begin(event.now_s)
        elif job.phase is Phase.CLOSING and event.epoch == job.round.epoch:
            self._selecting.measured(event)
            job.round.metrics = event
            self._try_choose(event.now_s)

    def _try_choose(self, now_s: float) -> None:
        """Score and choose once the new version exists and the metrics are here; then go on."""
        current = self._job.round
        if not current.aggregated or current.metrics is None:
            return
        last = current.epoch == self.spec.epochs - 1
        scores = self._selecting.scores(current, self._job.took_part())
        choice = _keep_last_epoch(scores) if last else self._choose(scores)
        self._apply(choice)
        self._journal.choice(now_s, scores, choice)
        if last:
            self._settle(now_s)
        else:
            self._rounds.start(current.epoch + 1, now_s)

    def _choose(self, scores: tuple[NodeScore, ...]) -> Choice:
        nodes = self._job.nodes.values()
        return self._selecting.choose(
            self._job.round,
            scores,
            eliminated=tuple(node.name for node in nodes if node.out == ELIMINATED),
            standby=tuple(n.name for n in nodes if n.out == ELIMINATED and n.health is Health.READY),
            unselected=tuple(n.name for n in nodes if n.out == UNSELECTED and n.is_free),
        )

    def _apply(self, choice: Choice) -> None:
        self._selecting.chosen(choice)
        nodes = self._job.nodes
        for name in choice.eliminated:
            nodes[name].out = ELIMINATED
        for name in choice.readmitted:
            if nodes[name].out in (ELIMINATED, UNSELECTED):
                nodes[name].out = None

    # The end

    def _settle(self, now_s: float) -> None:
        self._job.phase = Phase.SETTLING
        self._journal.announce("settling", f"bringing all nodes to version {self._job.version}")
        for node in self._job.nodes.values():
            if node.health is Health.EMPTY:
                self._rounds.load(node, now_s)
        self._background.sync(now_s)

    def _on_evaluated(self, event: Evaluated) -> None:
        if not isfinite(event.loss):
            self._fail(
                event.now_s,
                f"the held-out loss of version {event.version} is {event.loss}: training diverged; "
                "lower the learning rate",
            )
            return
        job = self._job
        job.losses[event.version] = event.loss
        if event.version == self.spec.epochs and job.completed_at_s is None:
            job.completed_at_s = event.now_s
        self._journal.loss(event.version, event.loss)

    def _try_finish(self, now_s: float) -> None:
        completed_at_s = self._job.completed_at_s
        if self._job.settling and completed_at_s is not None and self._background.all_settled():
            self._job.phase = Phase.ENDED
            self._journal.finished(now_s, completed_at_s)

    def _fail(self, now_s: float, reason: str, *, cancelled: bool = False) -> None:
        self._job.phase = Phase.ENDED
        self._journal.failed(now_s, reason, cancelled=cancelled)

    # What happens to nodes

    def _on_synced(self, event: NodeSynced) -> None:
        node = self._node(event.node)
        if node is not None and node.health is not Health.LOST:
            self._background.synced(node, event)

    def _on_request_failed(self, event: RequestFailed) -> None:
        node = self._node(event.node)
        if node is None or node.health is Health.LOST:
            return
        if event.request == "sync":
            self._background.failed(node, event.now_s, event.reason)
        elif event.request == "load" and node.health is Health.LOADING:
            self._rounds.drop(node, event.now_s, "load-failed", f"could not be loaded: {event.reason}")
        elif event.request == "round" and node.health is Health.TRAINING:
            node.health = Health.READY
            self._rounds.strike(node, event.now_s, event.reason)

    def _on_lost(self, event: NodeLost) -> None:
        node = self._node(event.node)
        if node is None or node.health is Health.LOST:
            return
        node.health, node.syncing_since_s, node.version = Health.LOST, None, -1
        self._rounds.miss(node, event.now_s, "lost", event.reason)

    def _on_back(self, event: NodeBack) -> None:
        node = self._node(event.node)
        if node is None or node.health is not Health.LOST:
            return
        node.strikes = node.sync_failures = 0
        node.health = Health.EMPTY
        if self._job.phase not in (Phase.ROUND, Phase.CLOSING, Phase.SETTLING):
            return
        self._rounds.allow_again(node, event.now_s, "back")
        if node.has_data or self._job.settling:
            self._rounds.load(node, event.now_s)

    def _on_tick(self, event: Tick) -> None:
        for node in self._job.nodes.values():
            if not self.ended:
                self._rounds.check_deadlines(node, event.now_s)
        self._rounds.try_close(event.now_s)
        if self._metrics_overdue(event.now_s):
            nothing = MetricsTaken(
                now_s=event.now_s,
                epoch=BEFORE if self._job.phase is Phase.STARTING else self._job.round.epoch,
                nodes=(),
                network=Network(taken_at_s=event.now_s),
            )
            self._on_metrics(nothing)

    def _metrics_overdue(self, now_s: float) -> bool:
        job = self._job
        waiting = job.phase is Phase.STARTING or (job.phase is Phase.CLOSING and job.round.metrics is None)
        return waiting and now_s - job.measuring_since_s > self.spec.metrics_timeout_s


def _keep_last_epoch(scores: tuple[NodeScore, ...]) -> Choice:
    return Choice(eliminated=(), reason=f"the last epoch: all {len(scores)} stay")
