"""One fine-tuning job on live workers: carries out what the engine decides and tells it what happened.

One thread owns the engine and everything that is not a request; requests to nodes and evaluations run in
a pool and answer with events.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator import nodes as node_states
from orchestrator.core.errors import CoreError
from orchestrator.core.jsonable import to_json
from orchestrator.errors import OrchestratorError, Unavailable
from orchestrator.events import Progress
from orchestrator.finetune import messages as m
from orchestrator.finetune import snapshot as snapshots
from orchestrator.finetune.calls import NodeCalls, Traffic
from orchestrator.finetune.engine import Engine
from orchestrator.finetune.evaluating import Evaluator
from orchestrator.finetune.intake import Intake
from orchestrator.finetune.job_workload import job_workload
from orchestrator.finetune.keeping import Keeper
from orchestrator.finetune.preparing import Prepared, first_version, prepare
from orchestrator.finetune.request import JobRequest
from orchestrator.finetune.talking import Talking
from orchestrator.finetune.versions import Versions
from orchestrator.ports import Checkpoint, Checkpoints, Json, NodeEvent, Ports

log = logging.getLogger(__name__)

TICK_S = 0.5
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
        ports: Ports,
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
        self._ports = ports
        self._resumes = resumes
        self._checkpoint = checkpoint
        self._keeper = Keeper(
            job=job,
            checkpoints=checkpoints,
            events=ports.events,
            newest=None if checkpoint is None else checkpoint.version,
        )
        self._checkpoint_due = False
        self._versions = Versions(self._request.training, epochs=self._request.epochs)
        self._inbox: queue.Queue[m.Event] = queue.Queue()
        self._cancelled = threading.Event()
        self._suspended: str | None = None
        self._stopping = threading.Event()
        self._ended = False
        self._intake: Intake | None = None
        self._prepared: Prepared
        self._calls: NodeCalls
        self._talking: Talking | None = None
        self._evaluator: Evaluator | None = None
        self._traffic = Traffic(checkpoint.state["bytes"] if checkpoint else {})

    @property
    def ended(self) -> bool:
        """Say whether the job has its last state; its thread may still tidy up."""
        return self._ended

    def run(self) -> None:
        """Prepare, run to the end and leave the record in its last state."""
        stop_listening = self._ports.pool.subscribe(self._hear)
        executor = ThreadPoolExecutor(max_workers=2 * len(self._nodes) + 2, thread_name_prefix=self._job)
        self._executor = executor
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
            if self._evaluator is not None:
                self._evaluator.close()
            self._versions.release()

    def cancel(self, reason: str) -> None:
        """Ask the job to end."""
        self._cancelled.set()
        self._stopping.set()
        self._inbox.put(m.Cancelled(now_s=self._ports.clock.monotonic_s(), reason=reason))

    def suspend(self, reason: str) -> None:
        """Ask the job to stop at its last finished round, for another process to go on with it."""
        self._suspended = reason
        self._stopping.set()
        self._inbox.put(m.Tick(now_s=self._ports.clock.monotonic_s()))

    def _prepare(self) -> None:
        """Read the model and cut the data; version 0 of the parameters exists afterwards."""
        request = self._request
        self._announce("preparing", f"reading model {request.model} and data {request.data}")
        prepared = self._prepared = prepare(
            request,
            nodes=self._nodes,
            seed=self._seed,
            models=self._ports.models,
            capacities=self._take_capacities(),
            progress=Progress(self._ports.events, self._job),
        )
        if self._checkpoint is None:
            self._versions.begin(0, first_version(prepared, models=self._ports.models, seed=self._seed))
        else:
            self._go_on_from(self._checkpoint)
        # what a round exchanges: all parameters, or adapters
        self._intake = Intake(sum(array.nbytes for array in self._versions.newest.values()))
        self._calls = NodeCalls(
            job=self._job,
            pool=self._ports.pool,
            clock=self._ports.clock,
            seed=self._seed,
            nodes=self._nodes,
            config=prepared.model.config,
            training=request.training,
            epochs=request.epochs,
            partitions=prepared.split.partitions,
            timeout_s=request.round_timeout_s,
            traffic=self._traffic,
            base=prepared.base,
            digest=self._ports.models.digest,
            tokenizer_json=prepared.model.tokenizer_json if request.local_data else None,
            intake=self._intake,
            known=self._resumes > 0,
        )
        self._talking = Talking(job=self._job, calls=self._calls, executor=self._executor, put=self._put)
        self._evaluator = Evaluator(
            job=self._job,
            models=self._ports.models,
            prepared=prepared,
            sequence=request.training.sequence_length,
            put=self._put,
        )

    def _take_capacities(self) -> dict[str, float | None]:
        """Give the nodes' compute as it was when the job began: data are dealt by it once."""
        if self._checkpoint is not None:
            return dict(self._checkpoint.state["capacities"])
        if self._resumes:
            self._await_nodes()
        known = {record.node: record.profile.get("compute_flops") for record in self._ports.pool.nodes()}
        return {node: known.get(node) for node in self._nodes}

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        """Take up the state of an earlier process.

        Raises:
            InvalidRequest: model or data are no longer those that the job began with.
        """
        self._prepared.check(checkpoint, self._request)
        self._versions.begin(checkpoint.version, checkpoint.parameters, checkpoint.outer)
        self._engine.restore(snapshots.from_json(checkpoint.state["engine"]))

    def _loop(self) -> None:
        engine = self._engine
        if self._resumes and not self._stopping.is_set():
            self._await_nodes()
        if self._cancelled.is_set():
            self._end("cancelled", "cancelled by the user")
            return
        if self._suspended is not None:
            self._announce("suspended", self._suspended)
            return
        workload = job_workload(
            self._request,
            self._prepared.model,
            self._prepared.split,
            trained={name: array.shape for name, array in self._versions.newest.items()},
        )
        self._carry_out(engine.handle(m.JobStarted(now_s=self._ports.clock.monotonic_s(), workload=workload)))
        while not self._ended:
            event = self._next_event()
            if self._suspended is not None and not self._cancelled.is_set():
                self._announce("suspended", f"{self._suspended}; goes on from version {engine.version}")
                return
            self._carry_out(engine.handle(event))

    def _await_nodes(self) -> None:
        """Wait until the nodes of a resumed job have attached again: all for a while, then any.

        Raises:
            Unavailable: not one came.
        """
        wanted = self._engine.active or self._nodes
        self._announce("preparing", f"resumed: waiting for {', '.join(wanted)} to attach again")
        started_s = self._ports.clock.monotonic_s()
        while True:
            here = {record.node for record in self._ports.pool.nodes() if record.alive}
            missing = [node for node in wanted if node not in here]
            waited_s = self._ports.clock.monotonic_s() - started_s
            if not missing or (len(missing) < len(wanted) and waited_s > RESUME_PATIENCE_S):
                return
            if waited_s > RESUME_LIMIT_S:
                raise Unavailable(
                    f"none of {', '.join(wanted)} attached within {RESUME_LIMIT_S:g} s of the restart; "
                    "start the workers, then a new job"
                )
            if self._stopping.wait(_RESUME_POLL_S):
                return

    def _next_event(self) -> m.Event:
        try:
            return self._inbox.get(timeout=TICK_S)
        except queue.Empty:
            return m.Tick(now_s=self._ports.clock.monotonic_s())

    def _hear(self, event: NodeEvent) -> None:
        if event.node not in self._nodes:
            return
        now_s = self._ports.clock.monotonic_s()
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
        assert self._talking is not None
        assert self._evaluator is not None
        match instruction:
            case m.LoadNode(version=version):
                self._talking.load(instruction, self._versions[version])
            case m.StartRound(version=version):
                self._talking.round(instruction, self._versions[version])
            case m.SyncNode(version=version):
                self._talking.sync(instruction, self._versions[version])
            case m.Accept(node=node, epoch=epoch, weight=weight):
                self._add(node, epoch, weight)
            case m.Discard(node=node, epoch=epoch, reason=reason):
                update = self._talking.take(node, epoch)
                if update is not None:
                    update.close()
                    log.info("job %s: update of %s in epoch %d discarded: %s", self._job, node, epoch, reason)
            case m.Aggregate():
                self._versions.aggregate(instruction)
                self._put(m.Aggregated, version=instruction.new_version)
            case m.Evaluate(version=version):
                self._versions.forget_before(version)
                self._evaluator.evaluate(version, self._versions[version])
            case m.TakeMetrics(epoch=epoch):
                self._take_metrics(epoch)
            case m.Record(decision=decision):
                log.info("job %s: %s: %s", self._job, decision.verdict, decision.reason)
                self._ports.events.publish(self._job, "decision", decision.to_json())
            case m.ReportEpoch(report=report):
                self._ports.events.publish(self._job, "epoch", _json(report))
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

    def _put(self, kind: type[m.Event], **values: Any) -> None:
        self._inbox.put(kind(now_s=self._ports.clock.monotonic_s(), **values))

    def _add(self, node: str, epoch: int, weight: float) -> None:
        assert self._talking is not None
        update = self._talking.take(node, epoch)
        if update is None:
            return
        try:
            self._versions.add(epoch, update.pieces(), weight)
        finally:
            update.close()

    def _make_checkpoint(self) -> Checkpoint:
        version = self._engine.version
        return Checkpoint(
            job=self._job,
            version=version,
            state={
                "engine": self._engine.snapshot(self._ports.clock.monotonic_s()).to_json(),
                "bytes": self._traffic.totals(),
                "data_digest": self._prepared.data_digest,
                "resumes": self._resumes,
                "capacities": dict(self._prepared.capacities),
                "model": self._prepared.model.digest,
            },
            parameters=self._versions[version],
            outer=self._versions.outer_state(),
        )

    def _take_metrics(self, epoch: int) -> None:
        states = tuple(
            node_states.state(record) for record in self._ports.pool.nodes() if record.node in self._nodes
        )
        self._put(m.MetricsTaken, epoch=epoch, nodes=states, network=self._ports.northbound.network())

    def _finish(self, summary: m.Summary) -> None:
        model, dealt = self._prepared.model, self._prepared.split
        parameters = self._prepared.whole(self._versions[summary.final_version])
        folder = self._ports.models.save(model, parameters, job=self._job)
        self._release_nodes()
        self._end("completed", "all epochs are done and all nodes hold the final model", {
            **_json(summary),
            "model": f"job:{self._job}",
            "model_folder": str(folder),
            "digest": self._ports.models.digest(parameters),
            "held_out_tokens": len(dealt.held_out),
            "tokens_per_node": round(
                sum(len(part) for part in dealt.partitions.values()) / len(self._nodes)
            ),
            "node_tokens": {node: len(part) for node, part in dealt.partitions.items()},
            "node_local_tokens": self._calls.local_tokens(),
        })  # fmt: skip

    def _release_nodes(self) -> None:
        """Have the nodes forget the job; one that does not answer forgets it at its next job."""
        self._give_up_updates()
        attached = {record.node for record in self._ports.pool.nodes() if record.alive}
        with ThreadPoolExecutor(max_workers=max(1, len(self._nodes))) as executor:
            list(executor.map(self._calls.end, [node for node in self._nodes if node in attached]))

    def _give_up_updates(self) -> None:
        if self._talking is not None:
            self._talking.give_up()
        if self._intake is not None:
            self._intake.close()

    def _announce(self, state: str, reason: str) -> None:
        log.info("job %s: %s: %s", self._job, state, reason)
        self._ports.store.update(self._job, state=state, reason=reason)
        self._ports.events.publish(self._job, "state", {"state": state, "reason": reason})

    def _end(self, state: str, reason: str, summary: Json | None = None) -> None:
        self._ended = True
        sizes = self._traffic.totals()
        figures = {
            **(summary or {}),
            "sent_bytes": sum(n for name, n in sizes.items() if name.endswith("_sent_bytes")),
            "received_bytes": sum(n for name, n in sizes.items() if name.endswith("_received_bytes")),
            "bytes": sizes,
            "resumes": self._resumes,
            "spooled_updates": 0 if self._intake is None else self._intake.spooled,
        }
        self._ports.store.update(
            self._job, state=state, reason=reason, ended_at=self._ports.clock.unix_s(), summary=figures
        )
        log.info("job %s: %s: %s", self._job, state, reason)
        self._ports.events.publish(self._job, "state", {"state": state, "reason": reason, "final": True})


def _json(value: object) -> Json:
    document = to_json(value)
    assert isinstance(document, dict)
    return document
