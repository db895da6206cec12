"""One fine-tuning job on live workers: carries out what the engine decides and tells it what happened.

One thread owns the engine and everything that is not a request; requests to nodes and evaluations run in
a pool and answer with events. Parameters of a version are never changed once made, so that requests in
flight can keep sending them.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator import nodes as node_states
from orchestrator.core.errors import CoreError
from orchestrator.core.jsonable import to_json
from orchestrator.errors import OrchestratorError, WorkerError, WorkerLost
from orchestrator.events import Progress
from orchestrator.finetune import messages as m
from orchestrator.finetune.data import Split, split
from orchestrator.finetune.engine import Engine
from orchestrator.finetune.job_workload import job_workload
from orchestrator.finetune.parameters import Parameters, WeightedSum, fault
from orchestrator.finetune.request import JobRequest
from orchestrator.ports import (
    Answer,
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

log = logging.getLogger(__name__)

TICK_S = 0.5
_EVALUATORS = 1
_PATIENCE_S = 5.0
_END_TIMEOUT_S = 10.0


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
    ) -> None:
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
        self._inbox: queue.Queue[m.Event] = queue.Queue()
        self._cancelled = threading.Event()
        self._ended = False
        self._model: Model
        self._split: Split
        self._versions: dict[int, Parameters] = {}
        self._digests: dict[int, str] = {}
        self._holds: dict[str, int] = {}
        self._held: dict[tuple[str, int], dict[str, NDArray[Any]]] = {}
        self._held_lock = threading.Lock()
        self._sums: dict[int, WeightedSum] = defaultdict(WeightedSum)
        self._bytes: Counter[str] = Counter()
        self._bytes_lock = threading.Lock()

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
        tokens = self._models.tokens(
            self._model, data=request.data, max_bytes=request.data_bytes, seed=self._seed
        )
        self._split = split(
            tokens,
            nodes=self._nodes,
            sequence=request.training.sequence_length,
            held_out_ratio=request.held_out_ratio,
            seed=self._seed,
        )
        self._versions[0] = self._models.parameters(self._model)

    def _loop(self) -> None:
        engine = self._engine
        if self._cancelled.is_set():
            self._end("cancelled", "cancelled by the user")
            return
        workload = job_workload(self._request, self._model, self._split)
        self._carry_out(engine.handle(m.JobStarted(now_s=self._clock.monotonic_s(), workload=workload)))
        while not self._ended:
            self._carry_out(engine.handle(self._next_event()))

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

    def _carry_out_one(self, instruction: m.Instruction) -> None:
        match instruction:
            case m.LoadNode():
                self._ask(instruction.node, "load", self._load, instruction)
            case m.StartRound():
                self._ask(instruction.node, "round", self._round, instruction)
            case m.SyncNode():
                self._ask(instruction.node, "sync", self._sync, instruction)
            case m.Accept(node=node, epoch=epoch, weight=weight):
                delta = self._take(node, epoch)
                if delta is not None:
                    self._sums[epoch].add(delta, weight)
            case m.Discard(node=node, epoch=epoch, reason=reason):
                if self._take(node, epoch) is not None:
                    log.info("job %s: update of %s in epoch %d discarded: %s", self._job, node, epoch, reason)
            case m.Aggregate():
                self._aggregate(instruction)
            case m.Evaluate(version=version):
                self._evaluator.submit(self._evaluate, version, self._versions[version])
            case m.TakeMetrics(epoch=epoch):
                self._take_metrics(epoch)
            case m.Record(decision=decision):
                log.info("job %s: %s: %s", self._job, decision.verdict, decision.reason)
                self._events.publish(self._job, "decision", decision.to_json())
            case m.ReportEpoch(report=report):
                self._events.publish(self._job, "epoch", _json(report))
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

    def _ask(
        self, node: str, request: str, action: Callable[[Any, Any, str], None], instruction: Any
    ) -> None:
        """Have `action` talk to the node in a thread of its own; what goes wrong becomes an event."""
        version = instruction.version
        parameters = self._versions[version]
        if version not in self._digests:
            self._digests[version] = self._models.digest(parameters)
        digest = self._digests[version]

        def talk() -> None:
            try:
                action(instruction, parameters, digest)
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

    def _load(self, instruction: m.LoadNode, parameters: Parameters, digest: str) -> None:
        node, version = instruction.node, instruction.version
        training = self._request.training.model_dump(exclude={"outer_learning_rate"})
        fields = {
            "job": self._job,
            "version": version,
            "config": self._model.config,
            "training": training,
        }
        answer = self._bulk(node, "train.load", fields, parameters, purpose="load")
        _check_digest(node, version, answer, digest)
        if instruction.data:
            self._send_data(node)
        self._holds[node] = version
        self._put(m.NodeLoaded, node=node, version=version)

    def _send_data(self, node: str) -> None:
        tokens = self._split.partitions[node]
        answer = self._bulk(node, "train.data", {"job": self._job}, {"tokens": tokens}, purpose="load")
        if answer.fields.get("tokens") != len(tokens):
            raise WorkerError(f"node {node} took {answer.fields.get('tokens')} of {len(tokens)} tokens")

    def _round(self, instruction: m.StartRound, parameters: Parameters, _digest: str) -> None:
        node, epoch, version = instruction.node, instruction.epoch, instruction.version
        fields = {
            "job": self._job,
            "epoch": epoch,
            "version": version,
            "seed": self._round_seed(node, epoch),
        }
        fresh = self._holds.get(node) == version
        started_s = self._clock.monotonic_s()
        answer = self._bulk(node, "train.run", fields, None if fresh else parameters, purpose="round")
        round_s = self._clock.monotonic_s() - started_s
        self._holds[node] = version
        reason = _answer_fault(answer.fields, epoch, version) or fault(answer.tensors, parameters)
        if reason is not None:
            self._put(m.UpdateArrived, node=node, epoch=epoch, valid=False, reason=reason, round_s=round_s)
            return
        with self._held_lock:
            self._held[node, epoch] = answer.tensors
        report = answer.fields
        self._put(
            m.UpdateArrived,
            node=node,
            epoch=epoch,
            train_s=float(report["train_s"]),
            round_s=round_s,
            real_s=float(report["real_s"]),
            late_s=float(report["late_s"]),
            samples=int(report["samples"]),
            loss=float(report["loss"]),
        )

    def _sync(self, instruction: m.SyncNode, parameters: Parameters, digest: str) -> None:
        node, version = instruction.node, instruction.version
        fields = {"job": self._job, "version": version}
        answer = self._bulk(node, "train.update", fields, parameters, purpose="sync")
        _check_digest(node, version, answer, digest)
        self._holds[node] = version
        self._put(m.NodeSynced, node=node, version=version)

    def _bulk(self, node: str, kind: str, fields: Json, tensors: Any, *, purpose: str) -> Answer:
        # The engine decides when a round has taken too long; this is only the end of waiting.
        timeout_s = self._request.round_timeout_s + _PATIENCE_S
        answer = self._pool.request(node, "bulk", kind, fields, tensors, timeout_s=timeout_s)
        with self._bytes_lock:
            self._bytes[f"{purpose}_sent_bytes"] += answer.sent_bytes
            self._bytes[f"{purpose}_received_bytes"] += answer.received_bytes
        return answer

    def _round_seed(self, node: str, epoch: int) -> int:
        sequence = np.random.SeedSequence([self._seed, self._nodes.index(node), epoch])
        return int(sequence.generate_state(1)[0])

    def _take(self, node: str, epoch: int) -> dict[str, NDArray[Any]] | None:
        with self._held_lock:
            return self._held.pop((node, epoch), None)

    def _aggregate(self, instruction: m.Aggregate) -> None:
        total = self._sums.pop(instruction.epoch)
        self._versions[instruction.new_version] = total.applied_to(
            self._versions[instruction.base_version], learning_rate=instruction.outer_learning_rate
        )
        # Requests in flight hold on to the parameters that they send; nobody starts from older ones.
        for version in [v for v in self._versions if v < instruction.base_version]:
            del self._versions[version]
            self._digests.pop(version, None)
        self._put(m.Aggregated, version=instruction.new_version)

    def _evaluate(self, version: int, parameters: Parameters) -> None:
        try:
            loss = self._models.loss(
                self._model,
                parameters,
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
        parameters = self._versions[summary.final_version]
        folder = self._models.save(self._model, parameters, job=self._job)
        self._release_nodes()
        self._end("completed", "all epochs are done and all nodes hold the final model", {
            **_json(summary),
            "model": f"job:{self._job}",
            "model_folder": str(folder),
            "digest": self._models.digest(parameters),
            "held_out_tokens": len(self._split.held_out),
            "tokens_per_node": len(next(iter(self._split.partitions.values()))),
        })  # fmt: skip

    def _release_nodes(self) -> None:
        """Have the nodes forget the job; one that does not answer forgets it at its next job."""
        with self._held_lock:
            self._held.clear()

        def release(node: str) -> None:
            try:
                self._pool.request(node, "bulk", "train.end", {"job": self._job}, timeout_s=_END_TIMEOUT_S)
            except WorkerError as error:
                log.info("job %s: %s", self._job, error)

        attached = {record.node for record in self._pool.nodes() if record.alive}
        with ThreadPoolExecutor(max_workers=max(1, len(self._nodes))) as executor:
            list(executor.map(release, [node for node in self._nodes if node in attached]))

    def _announce(self, state: str, reason: str) -> None:
        log.info("job %s: %s: %s", self._job, state, reason)
        self._store.update(self._job, state=state, reason=reason)
        self._events.publish(self._job, "state", {"state": state, "reason": reason})

    def _end(self, state: str, reason: str, summary: Json | None = None) -> None:
        self._ended = True
        with self._bytes_lock:
            figures = {
                **(summary or {}),
                "sent_bytes": sum(n for name, n in self._bytes.items() if name.endswith("_sent_bytes")),
                "received_bytes": sum(
                    n for name, n in self._bytes.items() if name.endswith("_received_bytes")
                ),
                "bytes": dict(self._bytes),
            }
        self._store.update(
            self._job, state=state, reason=reason, ended_at=self._clock.unix_s(), summary=figures
        )
        log.info("job %s: %s: %s", self._job, state, reason)
        self._events.publish(self._job, "state", {"state": state, "reason": reason, "final": True})


def _check_digest(node: str, version: int, answer: Answer, expected: str) -> None:
    found = str(answer.fields.get("digest"))
    if found != expected:
        raise WorkerError(
            f"node {node} holds other parameters than version {version}: digest {found[:16]}, "
            f"should be {expected[:16]}"
        )


def _answer_fault(report: Json, epoch: int, version: int) -> str | None:
    """Say what is wrong with the fields of an answer to `train.run`; None if nothing is."""
    if (report.get("epoch"), report.get("version")) != (epoch, version):
        return (
            f"the answer is for epoch {report.get('epoch')} and version {report.get('version')}, "
            f"asked were {epoch} and {version}"
        )
    for name in ("train_s", "real_s", "late_s", "loss"):
        value = report.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name} is {value!r}, not a finite number"
        if value < 0:
            return f"{name} is {value!r}, below 0"
    samples = report.get("samples")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        return f"samples is {samples!r}, not a whole number above 0"
    return None


def _json(value: object) -> Json:
    document = to_json(value)
    assert isinstance(document, dict)
    return document
