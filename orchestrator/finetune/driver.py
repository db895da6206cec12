"""Fine-tuning jobs: accepting, running one at a time, cancelling."""

from __future__ import annotations

import logging
import threading
from random import Random
from typing import Any

from orchestrator.core.energy import PowerProfile
from orchestrator.core.scoring import Weights
from orchestrator.core.selection import (
    DeadlineOptions,
    EliminationOptions,
    OortOptions,
    PlanOptions,
    PolicyOptions,
)
from orchestrator.errors import Conflict, InvalidRequest
from orchestrator.finetune.engine import Engine
from orchestrator.finetune.messages import JobSpec
from orchestrator.finetune.request import JobRequest
from orchestrator.finetune.run import JobRun
from orchestrator.ports import Clock, EventSink, Ids, ModelStore, Northbound, Record, Store, WorkerPool

log = logging.getLogger(__name__)


class FinetuneJobs:
    """Runs jobs, one at a time: they would fight for the same nodes and links."""

    def __init__(
        self,
        *,
        pool: WorkerPool,
        northbound: Northbound,
        store: Store,
        models: ModelStore,
        events: EventSink,
        clock: Clock,
        ids: Ids,
        seed: int,
    ) -> None:
        self._pool = pool
        self._northbound = northbound
        self._store = store
        self._models = models
        self._events = events
        self._clock = clock
        self._ids = ids
        self._seed = seed
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
            nodes = self._nodes(wanted)
            seed = self._seed if wanted.seed is None else wanted.seed
            self._models.check(wanted.model)
            self._models.check_data(wanted.data)
            job = self._ids("job")
            engine = self._make_engine(job, wanted, nodes, seed)
            record = Record(
                id=job,
                kind="job",
                state="accepted",
                created_at=self._clock.unix_s(),
                spec={**wanted.model_dump(mode="json"), "seed": seed, "nodes": list(nodes)},
            )
            self._store.add(record)
            self._start(job, wanted, nodes, seed, engine)
        return record

    def cancel(self, job: str) -> Record:
        """Ask a running job to end.

        Raises:
            Conflict: it has ended already.
        """
        with self._lock:
            running = self._running
        if running is None or running[0] != job or not running[2].is_alive():
            raise Conflict(f"job {job} is {self._store.get(job).state}; only a running job can be cancelled")
        running[1].cancel("cancelled by the user")
        return self._store.get(job)

    def stop(self, *, timeout_s: float) -> None:
        """Cancel what runs and wait for it to end."""
        with self._lock:
            running = self._running
        if running is not None and running[2].is_alive():
            running[1].cancel("the orchestrator stops")
            running[2].join(timeout=timeout_s)

    def _refuse_second(self) -> None:
        if self._running is not None and self._running[2].is_alive():
            raise Conflict(
                f"job {self._running[0]} is running and jobs run one at a time; wait for its end or cancel "
                f"it with DELETE /api/v1/jobs/{self._running[0]}"
            )

    def _nodes(self, request: Any) -> tuple[str, ...]:
        alive = {record.node: record for record in self._pool.nodes() if record.alive}
        if request.nodes is None:
            if not alive:
                raise Conflict("no node is alive; enrol workers first")
            return tuple(alive)
        for node in request.nodes:
            record = self._pool.node(node)
            if not record.alive:
                raise InvalidRequest(f"node {node!r} is not alive: {record.reason}", field="nodes")
        if not request.nodes:
            raise InvalidRequest("nodes is empty; name nodes or leave it out for all", field="nodes")
        return tuple(request.nodes)

    def _make_engine(self, job: str, request: Any, nodes: tuple[str, ...], seed: int) -> Engine:
        spec = JobSpec(
            job=job,
            nodes=nodes,
            policy=request.policy,
            epochs=request.epochs,
            weights=Weights(**request.weights.model_dump()),
            score=request.score,
            time_criterion=request.time_criterion,
            outer_learning_rate=request.training.outer_learning_rate,
            round_timeout_s=request.round_timeout_s,
            load_timeout_s=request.round_timeout_s,
            sync_timeout_s=request.round_timeout_s,
            rejoin=request.rejoin,
            options=PolicyOptions(
                eliminate=EliminationOptions(**request.eliminate.model_dump()),
                deadline=DeadlineOptions(**request.deadline.model_dump()),
                oort=OortOptions(**request.oort.model_dump()),
                plan=PlanOptions(**request.plan.model_dump()),
            ),
            power=PowerProfile(**request.power.model_dump()),
        )
        return Engine(spec, Random(seed))

    def _start(
        self,
        job: str,
        request: Any,
        nodes: tuple[str, ...],
        seed: int,
        engine: Engine,
    ) -> None:
        run = JobRun(
            job=job,
            request=request,
            seed=seed,
            nodes=nodes,
            engine=engine,
            pool=self._pool,
            northbound=self._northbound,
            store=self._store,
            models=self._models,
            events=self._events,
            clock=self._clock,
        )
        thread = threading.Thread(target=run.run, name=job, daemon=True)
        self._running = (job, run, thread)
        thread.start()
