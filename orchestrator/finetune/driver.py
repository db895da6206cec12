"""Fine-tuning jobs: accepting, running one at a time, cancelling."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from random import Random
from typing import Any

from pydantic import ValidationError

from orchestrator.core.errors import CoreError, InvalidPolicy
from orchestrator.core.selection import PolicyOptions
from orchestrator.errors import Conflict, InvalidRequest, OrchestratorError
from orchestrator.finetune.engine import Engine
from orchestrator.finetune.messages import JobSpec
from orchestrator.finetune.node_memory import JobMemory, job_memory
from orchestrator.finetune.request import JobRequest
from orchestrator.finetune.run import JobRun
from orchestrator.ports import Checkpoint, Checkpoints, Ports, Record

log = logging.getLogger(__name__)

_ATTEMPTS_LIMIT = 3
_LESS_MEMORY = "train adapters (training.lora_rank), use smaller batches, or free memory there"
SUSPENDED = "suspended"


class FinetuneJobs:
    """Runs jobs, one at a time: they would fight for the same nodes and links."""

    def __init__(
        self,
        ports: Ports,
        *,
        seed: int,
        checkpoints: Checkpoints,
    ) -> None:
        self._ports = ports
        self._seed = seed
        self._checkpoints = checkpoints
        self._lock = threading.Lock()
        self._running: tuple[str, JobRun, threading.Thread] | None = None

    def submit(self, request: JobRequest) -> Record:
        """Check the request and start the job.

        Raises:
            Conflict: another job runs.
            InvalidRequest, InvalidPolicy, ModelError, NotFound: it cannot be run as asked.
        """
        wanted: Any = request
        with self._lock:
            self._refuse_second()
            memory = job_memory(wanted.training, self._ports.models.describe(wanted.model))
            nodes, left_out = self._nodes(wanted, memory)
            seed = self._seed if wanted.seed is None else wanted.seed
            self._ports.models.check_data(wanted.data)
            job = self._ports.ids("job")
            engine = self._make_engine(job, wanted, nodes, seed, left_out)
            record = Record(
                id=job,
                kind="job",
                state="accepted",
                created_at=self._ports.clock.unix_s(),
                spec={**wanted.model_dump(mode="json"), "seed": seed, "nodes": list(nodes)},
            )
            self._ports.store.add(record)
            self._start(job, wanted, nodes, seed, engine)
        return record

    def resume(self) -> str | None:
        """Go on with the job that an earlier process left when it was killed; answers its name, if any.

        To be called before anything is submitted. A job that cannot be resumed fails with the reason; one
        that was resumed too often without getting further, too, so that it does not go round for ever.
        """
        unfinished = self._ports.store.unfinished("job")
        self._checkpoints.keep_only([record.id for record in unfinished])
        for record in unfinished[1:]:  # one runs at a time: there can be more only by somebody's hand
            self._give_up(record, "interrupted", "the orchestrator stopped before it ended")
        if not unfinished:
            return None
        record = unfinished[0]
        try:
            self._resume(record)
        except (OrchestratorError, CoreError, ValidationError, KeyError, TypeError) as error:
            self._give_up(record, "failed", f"it cannot be resumed: {error}")
            return None
        return record.id

    def abandon(self) -> None:
        """End the jobs that an earlier process left: what they ran on is not there any more."""
        self._checkpoints.keep_only([])
        for record in self._ports.store.unfinished("job"):
            self._give_up(record, "interrupted", "the orchestrator stopped before it ended")

    def _resume(self, record: Record) -> None:
        spec = record.spec
        wanted: Any = JobRequest(**spec)
        checkpoint, faults = self._checkpoints.load(record.id)
        version = 0 if checkpoint is None else checkpoint.version
        attempt = self._checkpoints.count_attempt(record.id, version)
        resumes = attempt + (0 if checkpoint is None else int(checkpoint.state["resumes"]))
        for reason in faults:
            self._ports.events.publish(
                record.id, "checkpoint", {"version": None, "written": False, "reason": reason}
            )
        if attempt > _ATTEMPTS_LIMIT and record.state != SUSPENDED:  # that was asked for
            raise Conflict(
                f"it was resumed {_ATTEMPTS_LIMIT} times from version {version} and got no further; "
                "the log says why it ended"
            )
        nodes, seed = tuple(spec["nodes"]), int(spec["seed"])
        log.info("job %s is resumed from version %d", record.id, version)
        engine = self._make_engine(record.id, wanted, nodes, seed)
        with self._lock:
            self._start(record.id, wanted, nodes, seed, engine, resumes=resumes, checkpoint=checkpoint)

    def _give_up(self, record: Record, state: str, reason: str) -> None:
        log.warning("job %s: %s: %s", record.id, state, reason)
        self._ports.store.update(record.id, state=state, reason=reason, ended_at=self._ports.clock.unix_s())
        self._ports.events.publish(record.id, "state", {"state": state, "reason": reason, "final": True})
        self._checkpoints.discard(record.id)

    def cancel(self, job: str) -> Record:
        """Ask a running job to end.

        Raises:
            Conflict: it has ended already.
        """
        with self._lock:
            running = self._running
        if running is None or running[0] != job or not running[2].is_alive():
            raise Conflict(
                f"job {job} is {self._ports.store.get(job).state}; only a running job can be cancelled"
            )
        running[1].cancel("cancelled by the user")
        return self._ports.store.get(job)

    def stop(self, *, timeout_s: float) -> None:
        """Suspend what runs, so that the next process goes on with it; wait until its last round is kept."""
        with self._lock:
            running = self._running
        if running is not None and running[2].is_alive():
            running[1].suspend("the orchestrator stops")
            running[2].join(timeout=timeout_s)

    def _refuse_second(self) -> None:
        if self._running is not None and self._running[2].is_alive() and not self._running[1].ended:
            raise Conflict(
                f"job {self._running[0]} is running and jobs run one at a time; wait for its end or cancel "
                f"it with DELETE /api/v1/jobs/{self._running[0]}"
            )

    def _nodes(self, request: Any, memory: JobMemory) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return who takes part, and who could not although alive, with the reason; who is named must."""
        if request.nodes is None:
            alive = [record for record in self._ports.pool.nodes() if record.alive]
            if not alive:
                raise Conflict("no node is alive; enrol workers first")
            short = memory.shortages(alive)
            if len(short) == len(alive):
                raise Conflict(f"no node can take part: {_listed(short)}; {_LESS_MEMORY}")
            return tuple(record.node for record in alive if record.node not in short), short
        records = [self._ports.pool.node(node) for node in request.nodes]
        if not records:
            raise InvalidRequest("nodes is empty; name nodes or leave it out for all", field="nodes")
        for record in records:
            if not record.alive:
                raise InvalidRequest(f"node {record.node!r} is not alive: {record.reason}", field="nodes")
        if short := memory.shortages(records):
            raise InvalidRequest(f"{_listed(short)}; leave them out, or {_LESS_MEMORY}", field="nodes")
        return tuple(request.nodes), {}

    def _make_engine(
        self,
        job: str,
        request: Any,
        nodes: tuple[str, ...],
        seed: int,
        left_out: Mapping[str, str] | None = None,
    ) -> Engine:
        spec = JobSpec(
            job=job,
            nodes=nodes,
            left_out=left_out or {},
            policy=request.policy,
            epochs=request.epochs,
            weights=request.weights,
            score=request.score,
            time_criterion=request.time_criterion,
            outer_learning_rate=request.training.outer_learning_rate,
            round_timeout_s=request.round_timeout_s,
            load_timeout_s=request.round_timeout_s,
            sync_timeout_s=request.round_timeout_s,
            rejoin=request.rejoin,
            options=PolicyOptions(
                eliminate=request.eliminate, deadline=request.deadline, oort=request.oort, plan=request.plan
            ),
            power=request.power,
        )
        try:
            return Engine(spec, Random(seed))
        except InvalidPolicy as error:
            if left_out:
                raise InvalidPolicy(f"{error}; left out are {_listed(left_out)}") from error
            raise

    def _start(
        self,
        job: str,
        request: Any,
        nodes: tuple[str, ...],
        seed: int,
        engine: Engine,
        *,
        resumes: int = 0,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        run = JobRun(
            job=job,
            request=request,
            seed=seed,
            nodes=nodes,
            engine=engine,
            ports=self._ports,
            checkpoints=self._checkpoints,
            resumes=resumes,
            checkpoint=checkpoint,
        )
        thread = threading.Thread(target=run.run, name=job, daemon=True)
        self._running = (job, run, thread)
        thread.start()


def _listed(short: Mapping[str, str]) -> str:
    return "; ".join(f"{node}: {lack}" for node, lack in short.items())
