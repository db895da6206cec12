"""A change of route in two phases: prepare all, commit the stages, then the head; or abort, as if never."""

from __future__ import annotations

from orchestrator.core.model import Placement
from orchestrator.core.triggers import Ewma
from orchestrator.inference.journal import Journal
from orchestrator.inference.messages import (
    AbortShard,
    CommitShard,
    Committed,
    Prepared,
    PrepareShard,
    RetireShard,
)
from orchestrator.inference.state import Change, DeploymentState, Route, Step


class Changes:
    """At most one change at a time is under way."""

    def __init__(self, now: DeploymentState, journal: Journal) -> None:
        self._now = now
        self._journal = journal

    def begin(self, now_s: float, placement: Placement, cause: str) -> None:
        """Begin to change to `placement`."""
        self._now.last_epoch += 1
        route = Route(epoch=self._now.last_epoch, placement=placement)
        self._now.change = Change(
            route=route, cause=cause, began_at_s=now_s, since_s=now_s, waiting=set(placement.nodes)
        )
        self._journal.announce(self._state_in_change(), f"preparing {placement.describe()}: {cause}")
        held = self._now.held()
        for shard in placement.shards():
            old = held.get(shard.node)
            reuse = old is not None and old.holds_as(shard)
            self._journal.add(PrepareShard(epoch=route.epoch, shard=shard, reuse=reuse))

    def prepared(self, event: Prepared) -> None:
        """Take that a node is ready; commit when all are."""
        change = self.awaited(event.node, event.epoch, Step.PREPARING)
        if change is None:
            return
        change.waiting.discard(event.node)
        if change.waiting:
            return
        change.step, change.since_s = Step.COMMITTING, event.now_s
        change.waiting = set(change.route.placement.nodes) - {change.head}
        for node in change.route.placement.nodes[1:]:
            self._journal.add(CommitShard(node=node, epoch=event.epoch))
        self._switch_if_ready(change, event.now_s)

    def committed(self, event: Committed) -> None:
        """Take that a node has committed; the head follows when all others have."""
        change = self.awaited(event.node, event.epoch, Step.COMMITTING, Step.SWITCHING)
        if change is None:
            return
        change.waiting.discard(event.node)
        if change.step is Step.SWITCHING:
            self._switched(change, event.now_s)
        else:
            self._switch_if_ready(change, event.now_s)

    def retire(self, route: Route, *, except_for: str | None = None) -> None:
        """Have the living nodes of a route give up their shards."""
        for node in route.placement.nodes:
            if node != except_for and self._now.is_alive(node):
                self._journal.add(RetireShard(node=node, epoch=route.epoch))
                self._now.emptied.add(node)

    def abort(self, now_s: float, reason: str) -> None:
        """Give up the change under way; nothing has changed."""
        change, self._now.change = self._now.change, None
        if change is None:
            return
        for node in change.route.placement.nodes:
            if self._now.is_alive(node):
                self._journal.add(AbortShard(node=node, epoch=change.route.epoch))
        self._journal.decide(
            now_s,
            "deployment",
            "aborted",
            f"route epoch {change.route.epoch}: {reason}",
            inputs={"epoch": change.route.epoch, "step": change.step.value},
        )
        if self._now.route is not None and self._now.broken is None:
            self._journal.announce("serving", f"the change was aborted, nothing has changed: {reason}")

    def awaited(self, node: str, epoch: int, *steps: Step) -> Change | None:
        """Return the change that an answer belongs to, None if it is late or was not asked for."""
        change = self._now.change
        if change is None or change.route.epoch != epoch or change.step not in steps:
            return None
        return change if node in change.waiting else None

    def _switch_if_ready(self, change: Change, now_s: float) -> None:
        """Commit the head once all others have."""
        if change.waiting:
            return
        change.step, change.since_s, change.waiting = Step.SWITCHING, now_s, {change.head}
        self._journal.add(CommitShard(node=change.head, epoch=change.route.epoch))

    def _switched(self, change: Change, now_s: float) -> None:
        old, self._now.route, self._now.change = self._now.route, change.route, None
        self._now.broken, self._now.attempts, self._now.resuming = None, 0, False
        self._now.latency = Ewma()
        self._journal.forget_kept()
        self._now.served = True
        if old is not None:
            self._now.changed_at_s = now_s
            self.retire(old)
        self._now.emptied.clear()
        seconds = now_s - change.began_at_s
        self._journal.decide(
            now_s,
            "deployment",
            "switched",
            f"route epoch {change.route.epoch} serves after {seconds:.2f} s: "
            f"{change.route.placement.describe()}",
            inputs={"epoch": change.route.epoch, "seconds": seconds, "cause": change.cause},
        )
        self._journal.announce("serving", change.cause)

    def _state_in_change(self) -> str:
        if self._now.broken is not None:
            return "degraded"
        return "preparing" if self._now.route is None else "reconfiguring"
