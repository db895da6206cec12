"""One deployment on live workers: carries out what the engine decides and tells it what happened.

One thread owns the engine; requests to nodes run in a pool and answer with events.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.core.cost import Problem
from orchestrator.core.cost_tables import evaluate
from orchestrator.core.errors import CoreError, Infeasible
from orchestrator.core.jsonable import to_json
from orchestrator.core.model import NodeState, Placement, Shard
from orchestrator.errors import OrchestratorError, WorkerError
from orchestrator.events import Progress
from orchestrator.inference import messages as m
from orchestrator.inference.engine import Engine
from orchestrator.inference.generations import Generations
from orchestrator.inference.request import DeploymentRequest
from orchestrator.ports import (
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
PREPARE_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 10.0
_CONTEXT_TOKENS = 1024
_THREADS = 16
ENDED = ("failed", "retired")


class DeploymentRun:
    """Runs one deployment in the calling thread; everything else may be called from any other."""

    def __init__(
        self,
        *,
        deployment: str,
        request: DeploymentRequest,
        spec: Callable[[Model, int], m.DeploymentSpec],
        states: Callable[[Model], tuple[NodeState, ...]],
        generations: Generations,
        pool: WorkerPool,
        northbound: Northbound,
        store: Store,
        models: ModelStore,
        events: EventSink,
        clock: Clock,
    ) -> None:
        self.deployment = deployment
        self._request = request
        self._make_spec = spec
        self.spec: m.DeploymentSpec | None = None
        self._states = states
        self._generations = generations
        self._pool = pool
        self._northbound = northbound
        self._store = store
        self._models = models
        self._events = events
        self._clock = clock
        self._inbox: queue.Queue[m.Event] = queue.Queue()
        self._lock = threading.Lock()
        self._state = "accepted"
        self._reason = ""
        self._epoch: int | None = None
        self._placement: Placement | None = None
        self._history: list[Json] = []
        self._shards: dict[tuple[int, str], Shard] = {}
        self._memory: dict[tuple[int, str], int] = {}
        self._model: Model | None = None
        self._next_look_s = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        """Read the model, deploy it and keep it until it is taken down or cannot be had."""
        stop_listening = self._pool.subscribe(self._hear)
        self._executor = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix=self.deployment)
        try:
            self._note("preparing", f"reading model {self._request.model}")
            self._model = self._models.resolve(
                self._request.model, progress=Progress(self._events, self.deployment)
            )
            self.spec = self._make_spec(self._model, self.context_tokens)
            self._loop(Engine(self.spec), self._model)
        except (OrchestratorError, CoreError) as error:
            self._note("failed", str(error))
        except Exception as error:
            log.exception("deployment %s failed", self.deployment)
            self._note("failed", f"{type(error).__name__}: {error}")
        finally:
            stop_listening()
            self._executor.shutdown(wait=True, cancel_futures=False)
            self._generations.fail(self.deployment, f"deployment {self.deployment} is {self.state}")
            self._ended.set()

    @property
    def name(self) -> str | None:
        """Give what requests may call it beside its id."""
        return self._request.name

    @property
    def state(self) -> str:
        """Give the state that was announced last."""
        with self._lock:
            return self._state

    @property
    def model(self) -> Model | None:
        """Give the model once it has been read."""
        return self._model

    @property
    def context_tokens(self) -> int:
        """Give how many tokens a prompt and its answer may have together."""
        assert self._model is not None
        own = self._model.context_tokens
        return min(self._request.context_tokens or min(own, _CONTEXT_TOKENS), own)

    def head(self) -> str | None:
        """Give the head's node while there is a route."""
        with self._lock:
            return None if self._placement is None else self._placement.head

    def placement(self) -> Placement | None:
        """Give the placement that serves."""
        with self._lock:
            return self._placement

    def memory(self) -> dict[str, int]:
        """Give what this deployment takes of each node, in bytes; the largest of its route epochs' shards."""
        with self._lock:
            taken: dict[str, int] = {}
            for (_, node), size in self._memory.items():
                taken[node] = max(size, taken.get(node, 0))
            return taken

    def describe(self) -> Json:
        """Give what is worth showing of the live deployment."""
        with self._lock:
            placement, epoch, state, reason = self._placement, self._epoch, self._state, self._reason
            placements = list(self._history)
        described: Json = {"state": state, "reason": reason, "route_epoch": epoch, "placement": None}
        if placement is not None:
            described["placement"] = placement_json(placement)
        described["placements"] = placements
        described["running_requests"] = self._generations.running(self.deployment)
        if self._model is not None:
            described["layers"] = self._model.layers
            described["context_tokens"] = self.context_tokens
        return described

    def put(self, kind: type[m.Event], **values: Any) -> None:
        """Tell the engine that something happened now."""
        self._inbox.put(kind(now_s=self._clock.monotonic_s(), **values))

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait for the end."""
        return self._ended.wait(timeout_s)

    def _loop(self, engine: Engine, model: Model) -> None:
        self._next_look_s = self._clock.monotonic_s() + self._request.monitor_interval_s
        states = self._states(model)
        network = self._northbound.network()
        now_s = self._clock.monotonic_s()
        self._carry_out(engine.handle(m.DeployRequested(now_s=now_s, nodes=states, network=network)))
        while self.state not in ENDED:
            self._carry_out(engine.handle(self._next_event(model)))

    def _next_event(self, model: Model) -> m.Event:
        """Give what happened; the environment when it is time to look, a tick when nothing happens."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + self._request.monitor_interval_s
            return m.EnvironmentTaken(
                now_s=now_s, nodes=self._states(model), network=self._northbound.network()
            )
        try:
            return self._inbox.get(timeout=min(TICK_S, self._next_look_s - now_s))
        except queue.Empty:
            return m.Tick(now_s=self._clock.monotonic_s())

    def _hear(self, event: NodeEvent) -> None:
        if event.kind == "node_lost":
            self.put(m.NodeLost, node=event.node, reason=event.reason)

    def _carry_out(self, instructions: Iterable[m.Instruction]) -> None:
        for instruction in instructions:
            self._carry_out_one(instruction)

    def _carry_out_one(self, instruction: m.Instruction) -> None:
        match instruction:
            case m.PrepareShard():
                self._shards[instruction.epoch, instruction.shard.node] = instruction.shard
                self._executor.submit(self._guarded, self._prepare, instruction)
            case m.CommitShard():
                self._executor.submit(self._guarded, self._commit, instruction)
            case m.AbortShard(node=node, epoch=epoch):
                self._forget(node, lambda known: known == epoch)
                self._executor.submit(self._command, node, "shard.abort", epoch)
            case m.RetireShard(node=node, epoch=epoch):
                self._forget(node, lambda known: known <= epoch)
                self._executor.submit(self._command, node, "shard.retire", epoch)
            case m.Record(decision=decision):
                log.info("deployment %s: %s: %s", self.deployment, decision.verdict, decision.reason)
                self._events.publish(self.deployment, "decision", decision.to_json())
            case m.FailRequests(reason=reason):
                self._generations.fail(self.deployment, reason)
            case m.Announce():
                self._announce(instruction)
            case _:
                raise TypeError(f"the driver does not know the instruction {type(instruction).__name__}")

    def _guarded(self, action: Callable[[Any], None], instruction: Any) -> None:
        try:
            action(instruction)
        except Exception:
            # Every foreseen failure is an event already; this one must not pass unseen.
            log.exception("deployment %s: %r failed", self.deployment, instruction)

    def _prepare(self, instruction: m.PrepareShard) -> None:
        shard, epoch = instruction.shard, instruction.epoch
        try:
            fields = self._prepare_fields(epoch, shard, reuse=instruction.reuse)
            answer = self._pool.request(
                shard.node,
                "bulk",
                "shard.prepare",
                fields,
                None if instruction.reuse else self._parameters(shard),
                timeout_s=PREPARE_TIMEOUT_S,
            )
        except OrchestratorError as error:
            self.put(m.PrepareFailed, node=shard.node, epoch=epoch, reason=str(error))
            return
        except Exception as error:
            log.exception("deployment %s: preparing %s failed", self.deployment, shard.node)
            self.put(m.PrepareFailed, node=shard.node, epoch=epoch, reason=f"{type(error).__name__}: {error}")
            return
        memory = answer.fields.get("memory_bytes")
        memory_bytes = memory if isinstance(memory, int) and memory >= 0 else None
        with self._lock:
            if memory_bytes is not None and (epoch, shard.node) in self._shards:
                self._memory[epoch, shard.node] = memory_bytes
        self.put(m.Prepared, node=shard.node, epoch=epoch, memory_bytes=memory_bytes)

    def _prepare_fields(self, epoch: int, shard: Shard, *, reuse: bool) -> Json:
        model = self._model
        assert model is not None
        fields: Json = {
            "deployment": self.deployment,
            "epoch": epoch,
            "model": model.digest,
            "config": model.config,
            "roles": list(shard.roles),
            "first_layer": shard.first_layer,
            "end_layer": shard.end_layer,
            "previous": shard.previous,
            "next": self._neighbour(shard.next),
            "context_tokens": self.context_tokens,
            "request_timeout_s": self._request.request_timeout_s,
            "ring_nodes": shard.ring_nodes,
            "reuse": reuse,
        }
        if "head" in shard.roles:
            fields["tokenizer_json"] = model.tokenizer_json
        return fields

    def _neighbour(self, node: str) -> Json:
        record = self._pool.node(node)
        if not record.alive or record.address is None:
            raise WorkerError(f"the next node {node} is not attached: {record.reason}")
        return {"node": node, "address": record.address, "port": record.port}

    def _parameters(self, shard: Shard) -> Mapping[str, Any]:
        assert self._model is not None
        return self._models.shard(
            self._model,
            first_layer=shard.first_layer,
            end_layer=shard.end_layer,
            head="head" in shard.roles,
        )

    def _commit(self, instruction: m.CommitShard) -> None:
        node, epoch = instruction.node, instruction.epoch
        fields = {"deployment": self.deployment, "epoch": epoch}
        try:
            answer = self._pool.request(node, "control", "shard.commit", fields, timeout_s=COMMAND_TIMEOUT_S)
        except OrchestratorError as error:
            self.put(m.CommitFailed, node=node, epoch=epoch, reason=str(error))
            return
        if answer.fields.get("epoch") != epoch:
            reason = f"node {node} committed epoch {answer.fields.get('epoch')}, asked was {epoch}"
            self.put(m.CommitFailed, node=node, epoch=epoch, reason=reason)
            return
        self.put(m.Committed, node=node, epoch=epoch)

    def _command(self, node: str, kind: str, epoch: int) -> None:
        """Tell a node something whose answer nobody waits for."""
        fields = {"deployment": self.deployment, "epoch": epoch}
        try:
            self._pool.request(node, "control", kind, fields, timeout_s=COMMAND_TIMEOUT_S)
        except WorkerError as error:
            log.info("deployment %s: %s", self.deployment, error)

    def _forget(self, node: str, old: Callable[[int], bool]) -> None:
        with self._lock:
            for key in [key for key in self._shards if key[1] == node and old(key[0])]:
                del self._shards[key]
                self._memory.pop(key, None)

    def _announce(self, instruction: m.Announce) -> None:
        placement, epoch = instruction.placement, instruction.epoch
        with self._lock:
            fresh = placement is not None and epoch != self._epoch
            self._epoch, self._placement = epoch, placement
        if fresh and placement is not None:
            served = {
                "epoch": epoch,
                "at": self._clock.unix_s(),
                "reason": instruction.reason,
                "latency_s": self._expected_s(placement),
                **placement_json(placement),
            }
            with self._lock:
                self._history.append(served)
        self._note(instruction.state, instruction.reason)

    def _expected_s(self, placement: Placement) -> float | None:
        """Predict the time of one token on a route from what is measured now; None if it cannot be."""
        assert self.spec is not None
        assert self._model is not None
        problem = Problem(
            model=self.spec.model,
            nodes=self._states(self._model),
            network=self._northbound.network(),
            weights=self.spec.weights,
            workload=self.spec.workload,
            min_nodes=self.spec.min_nodes,
        )
        try:
            return evaluate(problem, placement).token_s
        except Infeasible as error:
            log.info("deployment %s: no expected latency: %s", self.deployment, error)
            return None

    def _note(self, state: str, reason: str) -> None:
        with self._lock:
            self._state, self._reason = state, reason
        log.info("deployment %s: %s: %s", self.deployment, state, reason)
        described = self.describe()
        ended_at = self._clock.unix_s() if state in ENDED else None
        self._store.update(
            self.deployment, state=state, reason=reason, ended_at=ended_at, summary=_summary(described)
        )
        self._events.publish(self.deployment, "state", {**described, "final": state in ENDED})


def placement_json(placement: Placement) -> Json:
    """Write a placement as JSON."""
    return {
        "head": placement.head,
        "stages": [to_json(stage) for stage in placement.stages],
        "hops": [list(hop) for hop in placement.hops],
        "text": placement.describe(),
    }


def _summary(described: Json) -> Json:
    return {name: described[name] for name in ("route_epoch", "placement", "placements")}
