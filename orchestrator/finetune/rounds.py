"""One epoch of a job, from whom it asks to the instruction that adds up what came; and who fails in it."""

from __future__ import annotations

from orchestrator.core.selection import RoundPlan
from orchestrator.finetune.background import Background
from orchestrator.finetune.journal import Journal
from orchestrator.finetune.messages import (
    Accept,
    Aggregate,
    Contribution,
    Discard,
    LoadNode,
    StartRound,
    TakeMetrics,
    UpdateArrived,
)
from orchestrator.finetune.selecting import Selecting
from orchestrator.finetune.state import (
    ELIMINATED,
    UNSELECTED,
    Health,
    JobState,
    Node,
    Phase,
    Round,
    invalid,
)

_AGAIN = 1.02
_MANY = 1000
"""A round of more nodes asks the policy whether it may close not at every answer, but as time passes."""


class Rounds:
    """Asks nodes to train and collects their answers; whoever fails costs its own contribution only."""

    def __init__(self, job: JobState, journal: Journal, selecting: Selecting, background: Background) -> None:
        self._job = job
        self._journal = journal
        self._selecting = selecting
        self._background = background
        self._training = False

    # Asking

    def start(self, epoch: int, now_s: float) -> None:
        """Ask those that the policy names; call others where nobody of them is there."""
        free, busy = self._job.free(), self._job.busy()
        if not free and not busy:
            self._recall(epoch, now_s, self._job.list_absent())
            return
        plan = self._plan(epoch, free or busy)
        named = frozenset(plan.participants)
        asked = [node for node in free or busy if node.name in named] or free or busy
        names = tuple(node.name for node in asked)
        self._job.phase = Phase.ROUND
        self._job.round = Round(
            epoch=epoch,
            started_at_s=now_s,
            active=names,
            waiting=set(names),
            plan=plan,
            predicted_s=self._selecting.predict(names, self._loaded(names)),
        )
        if len(asked) < len(free or busy):
            self._journal.plan(now_s)
        for node in asked:
            if node.health is Health.EMPTY:
                self.load(node, now_s)
            elif node.health is Health.READY:
                self._ask(node, now_s)
        self._background.sync(now_s)

    def go_on(self, node: Node, now_s: float) -> None:
        """Give a node that came free what waits for it: the round in progress, or a newer version."""
        if node.name in self._job.round.waiting and self._job.phase is Phase.ROUND:
            self._ask(node, now_s)
        else:
            self._background.sync(now_s)

    def load(self, node: Node, now_s: float) -> None:
        """Have a node sent the newest version and, unless the job settles, its data."""
        settling = self._job.settling
        node.health, node.since_s = Health.LOADING, now_s
        node.has_data = node.has_data or not settling
        self._journal.add(LoadNode(node=node.name, version=self._job.version, data=not settling))

    def wakes_at_s(self, now_s: float) -> float | None:
        """Return when the passing of time alone could close the round; None: it could not."""
        current, plan = self._job.round, self._job.round.plan
        if self._job.phase is not Phase.ROUND or not current.waiting or not current.updates:
            return None
        times = [] if plan.deadline_s is None else [plan.deadline_s]
        if plan.quorum is not None and len(current.updates) >= plan.quorum:
            elapsed_s = now_s - current.started_at_s
            times.append(max(plan.patience_s, elapsed_s * _AGAIN))
        return current.started_at_s + min(times) if times else None

    def _plan(self, epoch: int, nodes: list[Node]) -> RoundPlan:
        names = tuple(node.name for node in nodes)
        return self._selecting.plan_round(epoch, names, self._loaded(names))

    def _loaded(self, names: tuple[str, ...]) -> frozenset[str]:
        return frozenset(name for name in names if self._job.nodes[name].health is not Health.EMPTY)

    def _recall(self, epoch: int, now_s: float, why: str) -> None:
        """Call others for `epoch`, as nobody else can train it; fail if there are none."""
        spare = [node for node in self._job.nodes.values() if node.is_spare]
        asked = self._job.round.active if self._job.round.epoch == epoch else ()
        resting = [node for node in self._job.free() if node.name not in asked]
        if not spare and not resting:
            self._job.phase = Phase.ENDED
            self._journal.failed(now_s, f"no node contributed to epoch {epoch}: {why}")
            return
        for node in spare:
            node.out = None
        names = ", ".join(node.name for node in (*spare, *resting))
        reason = f"{names}: nobody else can train epoch {epoch} ({why})"
        self._journal.decide(now_s, "node", "recalled", reason)
        self.start(epoch, now_s)

    def _ask(self, node: Node, now_s: float) -> None:
        if not self._training:
            self._training = True
            self._journal.announce("training", f"{node.name} is loaded and trains")
        epoch, version = self._job.round.epoch, self._job.version
        node.health, node.since_s = Health.TRAINING, now_s
        node.trains_epoch, node.trains_version = epoch, version
        self._journal.add(StartRound(node=node.name, epoch=epoch, version=version))

    # Collecting

    def take(self, node: Node | None, event: UpdateArrived) -> None:
        """Take an answer: accept it, or discard it with the reason."""
        if node is None or not self._is_expected(node, event):
            self._discard(event, "it came too late or was not asked for")
            if node is not None:
                self._take_late(node, event)
            return
        node.health, node.version = Health.READY, max(node.version, self._job.version)
        reason = invalid(event)
        if reason is not None:
            self._discard(event, reason)
            self.strike(node, event.now_s, reason)
            return
        node.strikes = 0
        _account(node, event)
        current = self._job.round
        current.waiting.discard(node.name)
        current.updates[node.name] = event
        current.answered_s[node.name] = event.now_s - current.started_at_s
        self._journal.add(Accept(node=node.name, epoch=event.epoch, weight=float(event.samples)))
        self.try_close(event.now_s)

    def try_close(self, now_s: float) -> None:
        """End the epoch's collecting once nobody's answer is awaited any more."""
        job, current = self._job, self._job.round
        if job.phase is not Phase.ROUND or (current.waiting and not self._closes_early(now_s)):
            return
        if not current.updates:
            reasons = "; ".join(f"{node}: {reason}" for node, reason in current.failed.items())
            self._recall(current.epoch, now_s, reasons)
            return
        job.phase, current.closed_at_s = Phase.CLOSING, now_s
        current.late = tuple(name for name in current.active if name in current.waiting)
        current.waiting.clear()
        self._selecting.closed(current)
        self._journal.add(
            Aggregate(
                epoch=current.epoch,
                base_version=job.version,
                new_version=job.version + 1,
                outer_learning_rate=job.spec.outer_learning_rate,
                contributions=tuple(
                    Contribution(node=name, weight=float(current.updates[name].samples))
                    for name in current.active
                    if name in current.updates
                ),
            )
        )
        job.measuring_since_s = now_s
        self._journal.add(TakeMetrics(epoch=current.epoch))

    def _is_expected(self, node: Node, event: UpdateArrived) -> bool:
        return (
            self._job.phase is Phase.ROUND
            and node.health is Health.TRAINING
            and node.name in self._job.round.waiting
            and event.epoch == self._job.round.epoch
        )

    def _discard(self, event: UpdateArrived, reason: str) -> None:
        self._journal.add(Discard(node=event.node, epoch=event.epoch, reason=reason))

    def _take_late(self, node: Node, event: UpdateArrived) -> None:
        """Free a node that was not waited for, or take back one that had run out of time."""
        if node.health is Health.SILENT:
            self.heard_again(node, event.now_s)
        elif node.health is Health.TRAINING and event.epoch == node.trains_epoch:
            node.health, node.version = Health.READY, max(node.version, node.trains_version)
            _account(node, event)
            self.go_on(node, event.now_s)

    def _closes_early(self, now_s: float) -> bool:
        """Say whether the round ends although answers are still awaited, and record why."""
        current, plan = self._job.round, self._job.round.plan
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
            verdict = f"close without {', '.join(sorted(current.waiting))}"
            self._journal.decide(now_s, "round", verdict, why)
        return why is not None

    # What goes wrong with nodes

    def drop(self, node: Node, now_s: float, verdict: str, reason: str) -> None:
        """Leave a node out until it comes back by itself."""
        node.health, node.out = Health.SILENT, node.out or reason
        self.miss(node, now_s, verdict, reason)

    def strike(self, node: Node, now_s: float, reason: str) -> None:
        """Take an answer that is no good; too many in a row leave the node out."""
        node.strikes += 1
        if node.strikes >= self._job.spec.invalid_limit:
            node.out = f"{node.strikes} invalid answers in a row, the last: {reason}"
        self.miss(node, now_s, "refused", reason)

    def miss(self, node: Node, now_s: float, verdict: str, reason: str) -> None:
        """Record a node's failure; its contribution to the epoch, if awaited, will not come."""
        self._journal.node(node, now_s, verdict, f"{node.name}: {reason}")
        current = self._job.round
        if node.name in current.waiting:
            current.waiting.discard(node.name)
            current.failed[node.name] = f"{verdict}: {reason}"
            self.try_close(now_s)

    def heard_again(self, node: Node, now_s: float) -> None:
        """Take back a node that had run out of time and answers after all."""
        node.health = Health.READY
        self.allow_again(node, now_s, "answers-again")
        self._background.sync(now_s)

    def allow_again(self, node: Node, now_s: float, verdict: str) -> None:
        """Let a node that failed take part again, if it may."""
        if node.out == ELIMINATED:
            reason = f"{node.name} was eliminated and stays so; it gets the updates"
        elif node.out == UNSELECTED:
            reason = f"{node.name} is not selected; it gets the model at the end"
        elif self._job.spec.rejoin:
            node.out = None
            reason = f"{node.name} takes part again from the next epoch it is ready for"
        else:
            node.out = "it failed before and rejoin is off"
            reason = f"{node.name} gets the updates but takes no part: rejoin is off"
        self._journal.node(node, now_s, verdict, reason)

    def check_deadlines(self, node: Node, now_s: float) -> None:
        """Leave out a node that has taken too long to load or to train."""
        waited_s, spec = now_s - node.since_s, self._job.spec
        if node.health is Health.TRAINING and waited_s > spec.round_timeout_s:
            self.drop(node, now_s, "hung", f"no update within {spec.round_timeout_s:g} s")
        elif node.health is Health.LOADING and waited_s > spec.load_timeout_s:
            self.drop(node, now_s, "hung", f"not loaded within {spec.load_timeout_s:g} s")
        elif self._background.overdue(node, now_s):
            self._background.give_up(node, now_s)


def _account(node: Node, event: UpdateArrived) -> None:
    """Add what a node spent on the update that it sends."""
    train_s = event.train_s if invalid(event) is None and event.train_s is not None else 0.0
    node.compute_s += train_s
    node.transfer_s += max(0.0, event.now_s - node.since_s - train_s)
