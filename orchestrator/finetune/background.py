"""Bring new versions to nodes that take no part, beside the rounds; at the end, to all."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.finetune.journal import Journal
from orchestrator.finetune.messages import NodeSynced, SyncNode
from orchestrator.finetune.state import Health, JobState, Node

SYNC_ATTEMPTS = 3


class Background:
    """At most one transfer to a node at a time, and only ever of the newest version."""

    def __init__(self, job: JobState, journal: Journal) -> None:
        self._job = job
        self._journal = journal

    def sync(self, now_s: float, among: Iterable[Node] | None = None) -> None:
        """Begin a transfer to each node that is behind, idle, and has none in flight."""
        for node in self._job.nodes.values() if among is None else among:
            if self._is_due(node):
                node.syncing_since_s = now_s
                self._journal.add(SyncNode(node=node.name, version=self._job.version))

    def synced(self, node: Node, event: NodeSynced) -> None:
        """Note that a node confirmed a version; send it the next, if there is one already."""
        if node.syncing_since_s is not None:
            node.transfer_s += event.now_s - node.syncing_since_s
        node.version, node.syncing_since_s, node.sync_failures = max(node.version, event.version), None, 0
        if node.health is Health.SILENT:
            node.health = Health.READY
        self.sync(event.now_s, [node])

    def failed(self, node: Node, now_s: float, reason: str) -> None:
        """Note that a transfer failed; it is tried again so many times."""
        node.syncing_since_s, node.sync_reason = None, reason
        node.sync_failures += 1
        self.sync(now_s)

    def overdue(self, node: Node, now_s: float) -> bool:
        """Say whether a transfer has taken too long."""
        since_s = node.syncing_since_s
        return since_s is not None and now_s - since_s > self._job.spec.sync_timeout_s

    def give_up(self, node: Node, now_s: float) -> None:
        """Try a node whose transfer is overdue no more."""
        node.sync_failures = SYNC_ATTEMPTS
        self.failed(node, now_s, f"no answer within {self._job.spec.sync_timeout_s:g} s")

    def all_settled(self) -> bool:
        """Say whether no node is at anything any more."""
        return not any(node.syncing_since_s is not None or node.is_busy for node in self._job.nodes.values())

    def _is_due(self, node: Node) -> bool:
        settling = self._job.settling
        reachable = node.health is Health.READY or (settling and node.health is Health.SILENT)
        idle = node.syncing_since_s is None and node.sync_failures < SYNC_ATTEMPTS
        behind = 0 <= node.version < self._job.version
        return reachable and idle and behind and (settling or node.out is not None)
