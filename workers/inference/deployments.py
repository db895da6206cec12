"""The deployments that a node has a part in: which epochs it holds, and what they take.

The registry is used by many threads; what a stage caches belongs to the compute thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from workers.errors import RequestRefused
from workers.inference.assignment import Assignment
from workers.inference.head import Head
from workers.inference.layer_store import HEAD, LayerStore, Parameters
from workers.inference.peers import PeerLink, PeerLinks
from workers.inference.stage import Stage
from workers.models.kv_cache import MemoryBudget, SequenceReserve, cache_bytes
from workers.models.loader import digest
from workers.models.precision import bytes_of

MakeHead = Callable[[str], Head]
MakeStage = Callable[[Assignment, Parameters, PeerLink | None, "Deployment"], Stage]


class Deployment:
    """The epochs of one deployment that this node holds; the registry's lock guards the map."""

    def __init__(self, name: str, reserve: SequenceReserve, head: Head) -> None:
        self.name = name
        self.stages: dict[int, Stage] = {}
        self.committed: int | None = None
        self.reserve = reserve
        self.head = head


class Deployments:
    """The deployments of one node; thread-safe.

    `make_head(deployment)` and `make_stage(assignment, parameters, link, deployment)` make what runs them.
    """

    def __init__(
        self, budget: MemoryBudget, links: PeerLinks, *, make_head: MakeHead, make_stage: MakeStage
    ) -> None:
        self.store = LayerStore(budget)
        self._budget = budget
        self._links = links
        self._make_head = make_head
        self._make_stage = make_stage
        self._deployments: dict[str, Deployment] = {}
        self._lock = threading.Lock()
        self._preparing = threading.Lock()

    def all(self) -> list[Deployment]:
        """Return all deployments."""
        with self._lock:
            return list(self._deployments.values())

    def assignments(self) -> list[Assignment]:
        """Return what this node is to run, in all epochs."""
        with self._lock:
            stages = [stage for one in self._deployments.values() for stage in one.stages.values()]
        return [stage.assignment for stage in stages]

    def find(self, name: str) -> Deployment:
        """Return a deployment; raises RequestRefused if there is none."""
        with self._lock:
            deployment = self._deployments.get(name)
        if deployment is None:
            raise RequestRefused("no-such-deployment", f"deployment {name!r} is not held here")
        return deployment

    def stage(self, name: str, epoch: int) -> Stage | None:
        """Return one epoch's stage, None if it is not held (any more)."""
        with self._lock:
            deployment = self._deployments.get(name)
            return deployment.stages.get(epoch) if deployment else None

    def committed_stage(self, deployment: Deployment) -> Stage | None:
        """Return the stage of the committed epoch, None if there is none."""
        with self._lock:
            return None if deployment.committed is None else deployment.stages.get(deployment.committed)

    def older_stages(self, stage: Stage) -> list[Stage]:
        """Return the stages of a deployment's epochs before this one."""
        with self._lock:
            stages = list(stage.deployment.stages.values())
        return [one for one in stages if one.epoch < stage.epoch]

    def prepare(self, assignment: Assignment, sent: Parameters) -> str:
        """Hold an epoch's part, ready to run; return the digest of its parameters.

        Raises:
            RequestRefused, CacheError, ModelError, LinkError: it cannot be held; nothing has changed.
        """
        with ExitStack() as undo:
            link = self._links.acquire(assignment.next) if assignment.next else None
            if link:
                undo.callback(self._links.release, link)
            with self._preparing:  # one at a time: two could count on the same memory
                found = self._hold(assignment, sent, link, undo)
            undo.pop_all()
        return found

    def commit(self, name: str, epoch: int) -> tuple[Deployment, Stage, bool]:
        """Make an epoch the one that runs; return it, and whether it was not already."""
        deployment = self.find(name)
        with self._lock:
            stage = deployment.stages.get(epoch)
            if deployment.committed is not None and epoch < deployment.committed:
                raise RequestRefused("stale-epoch", f"epoch {deployment.committed} is committed, not {epoch}")
            if stage is None:
                raise RequestRefused("no-such-epoch", f"epoch {epoch} is not prepared here")
            changed = deployment.committed != epoch
            deployment.committed = epoch
        return deployment, stage, changed

    def take_out_uncommitted(self, deployment: Deployment, epoch: int) -> list[Stage]:
        """Remove one epoch that was not committed; return what `drop` is to free."""
        with self._lock:
            if epoch not in deployment.stages:
                return []
            if deployment.committed is not None and epoch <= deployment.committed:
                raise RequestRefused("committed", f"epoch {epoch} is committed; retire it instead")
            return [deployment.stages.pop(epoch)]

    def take_out_until(self, deployment: Deployment, epoch: int) -> list[Stage]:
        """Remove all epochs up to `epoch`; return what `drop` is to free."""
        with self._lock:
            if deployment.committed is not None and deployment.committed <= epoch:
                deployment.committed = None
            return [deployment.stages.pop(held) for held in sorted(deployment.stages) if held <= epoch]

    def drop(self, deployment: Deployment, stages: Sequence[Stage]) -> None:
        """Free what removed and closed stages held, and forget a deployment without epochs."""
        for stage in stages:
            self.store.release(stage.assignment.model, _units(stage.assignment))
            if stage.link:
                self._links.release(stage.link)
        with self._preparing:
            self._set_aside(deployment)
            with self._lock:
                if not deployment.stages and self._deployments.get(deployment.name) is deployment:
                    del self._deployments[deployment.name]

    def _hold(self, assignment: Assignment, sent: Parameters, link: PeerLink | None, undo: ExitStack) -> str:
        """Take parameters and memory for an epoch and enter it; return the shard's digest."""
        deployment = self._deployment_for(assignment)
        units = _units(assignment)
        parameters = self.store.acquire(
            assignment.model, assignment.config, units, sent, reuse=assignment.reuse
        )
        undo.callback(self.store.release, assignment.model, units)
        shard_digest = _verified_digest(assignment, parameters)
        self._set_aside(deployment, [assignment])
        undo.callback(self._set_aside, deployment)
        stage = self._make_stage(assignment, parameters, link, deployment)
        with self._lock:
            self._deployments[assignment.deployment] = deployment
            deployment.stages[assignment.epoch] = stage
        return shard_digest

    def _deployment_for(self, assignment: Assignment) -> Deployment:
        """Return the deployment to prepare an epoch of; a new one is not entered yet."""
        with self._lock:
            deployment = self._deployments.get(assignment.deployment)
        if deployment is None:
            name = assignment.deployment
            return Deployment(name, SequenceReserve(self._budget), self._make_head(name))
        if assignment.epoch in deployment.stages:
            raise RequestRefused("already-prepared", f"epoch {assignment.epoch} is prepared; abort it first")
        if deployment.committed is not None and assignment.epoch <= deployment.committed:
            raise RequestRefused(
                "stale-epoch", f"epoch {deployment.committed} is committed; prepare a later one than that"
            )
        return deployment

    def _set_aside(self, deployment: Deployment, more: Sequence[Assignment] = ()) -> None:
        """Keep memory for one sequence of full length in the largest of the deployment's epochs.

        One, because a sequence's caches of an older epoch are freed when it arrives in a newer one.
        """
        with self._lock:
            held = [stage.assignment for stage in deployment.stages.values()]
        all_of_it = [*held, *more]
        needed_bytes = max((_cache_bytes(one) for one in all_of_it), default=0)
        limits = [limit for one in all_of_it if (limit := one.cache_limit_bytes) is not None]
        unlimited = not all_of_it or len(limits) < len(all_of_it)
        deployment.reserve.set_aside(
            needed_bytes,
            f"the cache of one sequence of {deployment.name}",
            limit_bytes=None if unlimited else max(limits),
        )


def _units(assignment: Assignment) -> list[int]:
    layers = list(range(assignment.first_layer, assignment.end_layer))
    return [HEAD, *layers] if assignment.head else layers


def held_bytes(assignment: Assignment) -> int:
    """Return the bytes an assignment takes: parameters, and the cache of one sequence of full length."""
    config = assignment.config
    head_parameters = config.head_parameters if assignment.head else 0
    parameters = head_parameters + assignment.layers * config.layer_parameters
    return parameters * bytes_of(assignment.compute) + _cache_bytes(assignment)


def _cache_bytes(assignment: Assignment) -> int:
    return cache_bytes(assignment.config, layers=assignment.layers, tokens=assignment.context_tokens)


def _verified_digest(assignment: Assignment, parameters: Parameters) -> str:
    """Return the shard's digest; refuse if it is not the one that was announced."""
    found = digest(parameters)
    if assignment.digest is not None and found != assignment.digest:
        raise RequestRefused(
            "digest-mismatch", f"the shard's digest is {found}, announced was {assignment.digest}"
        )
    return found
