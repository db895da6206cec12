"""One fine-tuning job on live workers: carries out what the engine decides and tells it what happened.

One thread owns the engine and everything that is not a request; requests to nodes and evaluations run in
a pool and answer with events. Parameters of a version are never changed once made, so that requests in
flight can keep sending them.
"""

from __future__ import annotations

import hashlib
import logging
import math
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator import nodes as node_states
from orchestrator.core.errors import CoreError
from orchestrator.core.jsonable import to_json
from orchestrator.errors import (
    InvalidRequest,
    OrchestratorError,
    Unavailable,
    WorkerError,
    WorkerLost,
)
from orchestrator.events import Progress
from orchestrator.finetune import messages as m
from orchestrator.finetune import snapshot as snapshots
from orchestrator.finetune.calls import NodeCalls, Received, Traffic, weight_unit
from orchestrator.finetune.data import Dealing, Split, split
from orchestrator.finetune.engine import Engine
from orchestrator.finetune.intake import Intake
from orchestrator.finetune.job_workload import job_workload
from orchestrator.finetune.keeping import Keeper
from orchestrator.finetune.outer import OuterOptimiser, OuterSettings
from orchestrator.finetune.parameters import Parameters, WeightedSum
from orchestrator.finetune.request import JobRequest
from orchestrator.ports import (
    Checkpoint,
    Checkpoints,
    Clock,
    EventSink,
    Json,
    Model,
    ModelStore,
    NodeEvent,
    Northbound,
    Store,
    WorkerPool,
)
from workers import lora
from workers.lora import Lora
from workers.schedule import Schedule

log = logging.getLogger(__name__)

TICK_S = 0.5
_EVALUATORS = 1
RESUME_PATIENCE_S = 15.0
"""How long a resumed job waits for all its nodes: workers try to attach again at least every 5 s or so."""
RESUME_LIMIT_S = 600.0
_RESUME_POLL_S = 0.1


class JobRun:
    """Runs one job in the calling thread; `cancel` from any other."""

    def __init__(
        self,
        *,
        job: str,
        request: JobRequest,
        seed: int,
        nodes: tuple[str, ...],
        engine: Engine,
        pool: WorkerPool,
        northbound: Northbound,
        store: Store,
        models: ModelStore,
        events: EventSink,
        clock: Clock,
        checkpoints: Checkpoints,
        resumes: int = 0,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Take a job; `resumes`: how often it was begun before, `checkpoint`: where to go on."""
        self._job = job
        self._request: Any = request
        self._seed = seed
        self._nodes = nodes
        self._engine = engine
        self._pool = pool
        self._northbound = northbound
        self._store = store
        self._models = models
        self._events = events
        self._clock = clock
        self._resumes = resumes
        self._checkpoint = checkpoint
        self._keeper = Keeper(
            job=job,
            checkpoints=checkpoints,
            events=events,
            newest=None if checkpoint is None else checkpoint.version,
        )
        self._checkpoint_due = False
        training = self._request.training
        self._outer = OuterOptimiser(
            OuterSettings(
                kind=training.outer_optimiser,
                momentum=training.outer_momentum,
                beta2=training.outer_beta2,
                epsilon=training.outer_epsilon,
            )
        )
        self._lora = Lora(rank=training.lora_rank, alpha=training.lora_alpha) if training.lora_rank else None
        self._schedule = Schedule(
            kind=training.schedule,
            total_steps=self._request.epochs,
            warmup_steps=round(training.warmup_ratio * self._request.epochs),
            final_ratio=training.final_learning_rate_ratio,
        )
        self._inbox: queue.Queue[m.Event] = queue.Queue()
        self._cancelled = threading.Event()
        self._ended = False
        self._model: Model
        self._split: Split
        self._versions: dict[int, Parameters] = {}
        self._base: Parameters = {}
        self._held: dict[tuple[str, int], Received] = {}
        self._held_lock = threading.Lock()
        self._sums: dict[int, WeightedSum] = {}
        self._intake: Intake | None = None
        self._calls: NodeCalls
        self._traffic = Traffic(checkpoint.state["bytes"] if checkpoint else {})

    @property
    def ended(self) -> bool:
        """Say whether the job has its last state; its thread may still tidy up."""
        return self._ended

    def run(self) -> None:
        """Prepare, run to the end and leave the record in its last state."""
        stop_listening = self._pool.subscribe(self._hear)
        executor = ThreadPoolExecutor(max_workers=2 * len(self._nodes) + 2, thread_name_prefix=self._job)
        self._executor = executor
        self._evaluator = ThreadPoolExecutor(
            max_workers=_EVALUATORS, thread_name_prefix=f"{self._job}-evaluate"
        )
        try:
            self._prepare()
            self._loop()
        except (OrchestratorError, CoreError) as error:
            self._end("failed", str(error))
        except Exception as error:
            log.exception("job %s failed", self._job)
            self._end("failed", f"{type(error).__name__}: {error}")
        finally:
            stop_listening()
            self._give_up_updates()
            self._keeper.close(discard=self._ended)
            executor.shutdown(wait=False, cancel_futures=True)
            self._evaluator.shutdown(wait=False, cancel_futures=True)

    def cancel(self, reason: str) -> None:
        """Ask the job to end."""
        self._cancelled.set()
        self._inbox.put(m.Cancelled(now_s=self._clock.monotonic_s(), reason=reason))

    def _prepare(self) -> None:
        """Read the model and cut the data; version 0 of the parameters exists afterwards."""
        request = self._request
        self._announce("preparing", f"reading model {request.model} and data {request.data}")
        self._model = self._models.resolve(request.model, progress=Progress(self._events, self._job))
        self._capacities = self._take_capacities()
        tokens = self._models.tokens(
            self._model, data=request.data, max_bytes=request.data_bytes, seed=self._seed
        )
        self._split = split(
            tokens,
            nodes=self._nodes,
            sequence=request.training.sequence_length,
            held_out_ratio=request.held_out_ratio,
            seed=self._seed,
            dealing=Dealing(
                kind=request.partition, alpha=request.dirichlet_alpha, capacities=self._capacities
            ),
        )
        self._data_digest = hashlib.sha256(tokens.tobytes()).hexdigest()
        if self._lora is not None:
            self._base = self._models.parameters(self._model)
        if self._checkpoint is None:
            self._versions[0] = self._first_version()
        else:
            self._go_on_from(self._checkpoint)
        newest = self._versions[max(self._versions)]
        self._intake = Intake(sum(array.nbytes for array in newest.values()))
        self._calls = NodeCalls(
            job=self._job,
            pool=self._pool,
            clock=self._clock,
            seed=self._seed,
            nodes=self._nodes,
            config=self._model.config,
            training=request.training,
            epochs=request.epochs,
            partitions=self._split.partitions,
            timeout_s=request.round_timeout_s,
            traffic=self._traffic,
            base=self._base,
            digest=self._models.digest,
            tokenizer_json=self._model.tokenizer_json if request.local_data else None,
            intake=self._intake,
            known=self._resumes > 0,
        )

    def _first_version(self) -> Parameters:
        """Give what is trained as it is at the start: all parameters, or adapters that change nothing."""
        if self._lora is None:
            return self._models.parameters(self._model)
        shapes = {name: array.shape for name, array in self._base.items()}
        return lora.initial(shapes, self._lora, seed=self._seed)

    def _whole(self, parameters: Parameters) -> Parameters:
        """Give the parameters of the model that a version is."""
        return parameters if self._lora is None else lora.merged(self._base, parameters, self._lora)

    def _take_capacities(self) -> dict[str, float | None]:
        """Give the nodes' compute as it was when the job began: data are dealt by it once."""
        if self._checkpoint is not None:
            return dict(self._checkpoint.state["capacities"])
        if self._resumes:
            self._await_nodes()
        known = {record.node: record.profile.get("compute_flops") for record in self._pool.nodes()}
        return {node: known.get(node) for node in self._nodes}

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        """Take up the state of an earlier process.

        Raises:
            InvalidRequest: the data are no longer those that the job began with.
        """
        if checkpoint.state["data_digest"] != self._data_digest:
            raise InvalidRequest(
                f"the data {self._request.data} have changed since the job began, so that held-out and "
                "trained text would mix; start a new job",
                field="data",
            )
        if checkpoint.state["model"] != self._model.digest:
            raise InvalidRequest(
                f"model {self._request.model} is not the one that the job began with; start a new job",
                field="model",
            )
        self._versions[checkpoint.version] = checkpoint.parameters
        self._outer.restore(checkpoint.outer, checkpoint.parameters)
        self._engine.restore(snapshots.from_json(checkpoint.state["engine"]))

    def _loop(self) -> None:
        engine = self._engine
        if self._resumes and not self._cancelled.is_set():
            self._await_nodes()
        if self._cancelled.is_set():
            self._end("cancelled", "cancelled by the user")
            return
        trained = sum(array.nbytes for array in self._versions[max(self._versions)].values())
        workload = job_workload(self._request, self._model, self._split, trained_bytes=trained)
        self._carry_out(engine.handle(m.JobStarted(now_s=self._clock.monotonic_s(), workload=workload)))
        while not self._ended:
            self._carry_out(engine.handle(self._next_event()))

    def _await_nodes(self) -> None:
        """Wait until the nodes of a resumed job have attached again: all for a while, then any.

        Raises:
            Unavailable: not one came.
        """
        wanted = self._engine.active or self._nodes
        self._announce("preparing", f"resumed: waiting for {', '.join(wanted)} to attach again")
        started_s = self._clock.monotonic_s()
        while True:
            here = {record.node for record in self._pool.nodes() if record.alive}
            missing = [node for node in wanted if node not in here]
            waited_s = self._clock.monotonic_s() - started_s
            if not missing or (len(missing) < len(wanted) and waited_s > RESUME_PATIENCE_S):
                return
            if waited_s > RESUME_LIMIT_S:
                raise Unavailable(
                    f"none of {', '.join(wanted)} attached within {RESUME_LIMIT_S:g} s of the restart; "
                    "start the workers, then a new job"
                )
            if self._cancelled.wait(_RESUME_POLL_S):
                return

    def _next_event(self) -> m.Event:
        try:
            return self._inbox.get(timeout=TICK_S)
        except queue.Empty:
            return m.Tick(now_s=self._clock.monotonic_s())

    def _hear(self, event: NodeEvent) -> None:
        if event.node not in self._nodes:
            return
        now_s = self._clock.monotonic_s()
        if event.kind == "node_lost":
            self._inbox.put(m.NodeLost(now_s=now_s, node=event.node, reason=event.reason))
        else:
            self._inbox.put(m.NodeBack(now_s=now_s, node=event.node))

    def _carry_out(self, instructions: Iterable[m.Instruction]) -> None:
        for instruction in instructions:
            self._carry_out_one(instruction)
        if self._checkpoint_due and not self._ended:
            self._checkpoint_due = False
            self._keeper.keep(self._make_checkpoint())

    def _carry_out_one(self, instruction: m.Instruction) -> None:
        match instruction:
            case m.LoadNode():
                self._ask(instruction.node, "load", self._load, instruction)
            case m.StartRound():
                self._ask(instruction.node, "round", self._round, instruction)
            case m.SyncNode():
                self._ask(instruction.node, "sync", self._sync, instruction)
            case m.Accept(node=node, epoch=epoch, weight=weight):
                self._add(node, epoch, weight)
            case m.Discard(node=node, epoch=epoch, reason=reason):
                update = self._take(node, epoch)
                if update is not None:
                    update.close()
                    log.info("job %s: update of %s in epoch %d discarded: %s", self._job, node, epoch, reason)
            case m.Aggregate():
                self._aggregate(instruction)
            case m.Evaluate(version=version):
                self._forget_before(version)
                self._evaluator.submit(self._evaluate, version, self._versions[version])
            case m.TakeMetrics(epoch=epoch):
                self._take_metrics(epoch)
            case m.Record(decision=decision):
                log.info("job %s: %s: %s", self._job, decision.verdict, decision.reason)
                self._events.publish(self._job, "decision", decision.to_json())
            case m.ReportEpoch(report=report):
                self._events.publish(self._job, "epoch", _json(report))
                self._checkpoint_due |= self._keeper.needs(report.version)
            case m.Announce(state=state, reason=reason):
                # The end is announced by _end, when the model is saved and the nodes are told.
                if state not in ("completed", "failed", "cancelled"):
                    self._announce(state, reason)
            case m.Finish(summary=summary):
                self._finish(summary)
            case m.Fail(reason=reason, cancelled=cancelled):
                self._release_nodes()
                self._end("cancelled" if cancelled else "failed", reason)
            case _:
                raise TypeError(f"the driver does not know the instruction {type(instruction).__name__}")

    def _ask(self, node: str, request: str, action: Callable[[Any, Any], None], instruction: Any) -> None:
        """Have `action` talk to the node in a thread of its own; what goes wrong becomes an event."""
        parameters = self._versions[instruction.version]

        def talk() -> None:
            try:
                action(instruction, parameters)
            except WorkerLost as error:
                self._put(m.NodeLost, node=node, reason=str(error))
            except WorkerError as error:
                self._put(m.RequestFailed, node=node, request=request, reason=str(error))
            except Exception as error:
                log.exception("job %s: %s of node %s failed", self._job, request, node)
                reason = f"{type(error).__name__}: {error}"
                self._put(m.RequestFailed, node=node, request=request, reason=reason)

        self._executor.submit(talk)

    def _put(self, kind: type[m.Event], **values: Any) -> None:
        self._inbox.put(kind(now_s=self._clock.monotonic_s(), **values))

    def _load(self, instruction: m.LoadNode, parameters: Parameters) -> None:
        node, version = instruction.node, instruction.version
        self._calls.load(node, version, parameters, data=instruction.data)
        self._put(m.NodeLoaded, node=node, version=version)

    def _round(self, instruction: m.StartRound, parameters: Parameters) -> None:
        node, epoch = instruction.node, instruction.epoch
        answer = self._calls.round(node, epoch, instruction.version, parameters)
        if answer.update is None:
            self._put(
                m.UpdateArrived,
                node=node,
                epoch=epoch,
                valid=False,
                reason=answer.fault,
                round_s=answer.round_s,
            )
            return
        with self._held_lock:
            earlier = self._held.pop((node, epoch), None)
            self._held[node, epoch] = answer.update
        if earlier is not None:  # the node was asked twice; what is held on to keeps its room
            earlier.close()
        report = answer.report
        self._put(
            m.UpdateArrived,
            node=node,
            epoch=epoch,
            train_s=float(report["train_s"]),
            round_s=answer.round_s,
            real_s=float(report["real_s"]),
            late_s=float(report["late_s"]),
            samples=int(report["samples"]),
            loss=float(report["loss"]),
        )

    def _sync(self, instruction: m.SyncNode, parameters: Parameters) -> None:
        node, version = instruction.node, instruction.version
        self._calls.sync(node, version, parameters)
        self._put(m.NodeSynced, node=node, version=version)

    def _add(self, node: str, epoch: int, weight: float) -> None:
        update = self._take(node, epoch)
        if update is None:
            return
        if epoch not in self._sums:
            unit = weight_unit(self._request.training)
            self._sums[epoch] = WeightedSum(self._versions[max(self._versions)], unit=unit)
        try:
            self._sums[epoch].add(update.tensors(), weight)
        finally:
            update.close()

    def _take(self, node: str, epoch: int) -> Received | None:
        with self._held_lock:
            return self._held.pop((node, epoch), None)

    def _aggregate(self, instruction: m.Aggregate) -> None:
        total = self._sums.pop(instruction.epoch)
        rate = instruction.outer_learning_rate
        if self._request.training.synchronisation == "gradient":
            rate *= self._schedule.factor(instruction.epoch)
        self._versions[instruction.new_version] = self._outer.step(
            self._versions[instruction.base_version], total, learning_rate=rate
        )
        self._put(m.Aggregated, version=instruction.new_version)

    def _forget_before(self, version: int) -> None:
        """Drop older versions: nobody starts from them, and requests in flight hold on to what they send."""
        for old in [known for known in self._versions if known < version]:
            del self._versions[old]

    def _make_checkpoint(self) -> Checkpoint:
        version = self._engine.version
        return Checkpoint(
            job=self._job,
            version=version,
            state={
                "engine": self._engine.snapshot(self._clock.monotonic_s()).to_json(),
                "bytes": self._traffic.totals(),
                "data_digest": self._data_digest,
                "resumes": self._resumes,
                "capacities": self._capacities,
                "model": self._model.digest,
            },
            parameters=self._versions[version],
            outer=self._outer.state(),
        )

    def _evaluate(self, version: int, parameters: Parameters) -> None:
        try:
            loss = self._models.loss(
                self._model,
                self._whole(parameters),
                self._split.held_out,
                sequence=self._request.training.sequence_length,
            )
        except Exception as error:
            log.exception("job %s: evaluation of version %d failed", self._job, version)
            self._put(m.DriverFailed, reason=f"evaluation of version {version} failed: {error}")
            return
        if math.isfinite(loss):
            self._put(m.Evaluated, version=version, loss=loss)
        else:
            self._put(m.DriverFailed, reason=f"the held-out loss of version {version} is {loss}")

    def _take_metrics(self, epoch: int) -> None:
        states = tuple(
            node_states.state(record) for record in self._pool.nodes() if record.node in self._nodes
        )
        self._put(m.MetricsTaken, epoch=epoch, nodes=states, network=self._northbound.network())

    def _finish(self, summary: m.Summary) -> None:
        parameters = self._whole(self._versions[summary.final_version])
        folder = self._models.save(self._model, parameters, job=self._job)
        self._release_nodes()
        self._end("completed", "all epochs are done and all nodes hold the final model", {
            **_json(summary),
            "model": f"job:{self._job}",
            "model_folder": str(folder),
            "digest": self._models.digest(parameters),
            "held_out_tokens": len(self._split.held_out),
            "tokens_per_node": round(
                sum(len(part) for part in self._split.partitions.values()) / len(self._nodes)
            ),
            "node_tokens": {node: len(part) for node, part in self._split.partitions.items()},
            "node_local_tokens": self._calls.local_tokens(),
        })  # fmt: skip

    def _release_nodes(self) -> None:
        """Have the nodes forget the job; one that does not answer forgets it at its next job."""
        self._give_up_updates()
        attached = {record.node for record in self._pool.nodes() if record.alive}
        with ThreadPoolExecutor(max_workers=max(1, len(self._nodes))) as executor:
            list(executor.map(self._calls.end, [node for node in self._nodes if node in attached]))

    def _give_up_updates(self) -> None:
        with self._held_lock:
            held, self._held = self._held, {}
        for update in held.values():
            update.close()
        if self._intake is not None:
            self._intake.close()

    def _announce(self, state: str, reason: str) -> None:
        log.info("job %s: %s: %s", self._job, state, reason)
        self._store.update(self._job, state=state, reason=reason)
        self._events.publish(self._job, "state", {"state": state, "reason": reason})

    def _end(self, state: str, reason: str, summary: Json | None = None) -> None:
        self._ended = True
        sizes = self._traffic.totals()
        figures = {
            **(summary or {}),
            "sent_bytes": sum(n for name, n in sizes.items() if name.endswith("_sent_bytes")),
            "received_bytes": sum(n for name, n in sizes.items() if name.endswith("_received_bytes")),
            "bytes": sizes,
            "resumes": self._resumes,
        }
        self._store.update(
            self._job, state=state, reason=reason, ended_at=self._clock.unix_s(), summary=figures
        )
        log.info("job %s: %s: %s", self._job, state, reason)
        self._events.publish(self._job, "state", {"state": state, "reason": reason, "final": True})


def _json(value: object) -> Json:
    document = to_json(value)
    assert isinstance(document, dict)
    return document
