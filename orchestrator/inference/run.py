"""One deployment on live workers: carries out what the engine decides and tells it what happened.

One thread owns the engine; requests to nodes run in a pool and answer with events.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

from orchestrator.core.cost import Problem
from orchestrator.core.cost_tables import evaluate
from orchestrator.core.errors import CoreError, Infeasible
from orchestrator.core.model import NodeState, Placement
from orchestrator.errors import OrchestratorError
from orchestrator.events import Progress
from orchestrator.inference import messages as m
from orchestrator.inference.cache_limit import check_cache_limit, context_of
from orchestrator.inference.engine import Engine
from orchestrator.inference.generations import Generations
from orchestrator.inference.left import RETIRING, SUSPENDED, Left, placement_json
from orchestrator.inference.request import DeploymentRequest
from orchestrator.inference.shard_calls import ShardCalls
from orchestrator.ports import Json, Model, NodeEvent, Ports

log = logging.getLogger(__name__)

TICK_S = 0.5
RESUME_PATIENCE_S = 10.0
"""How long a deployment that is gone on with waits for the nodes that it was on; workers try every 5 s."""
_RESUME_POLL_S = 0.1
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
        ports: Ports,
        left: Left | None = None,
    ) -> None:
        """`left`: go on with what an earlier process left."""
        self.deployment = deployment
        self._request = request
        self._make_spec = spec
        self.spec: m.DeploymentSpec | None = None
        self._states = states
        self._generations = generations
        self._ports = ports
        self._inbox: queue.Queue[m.Event] = queue.Queue()
        self._lock = threading.Lock()
        self._state = "accepted"
        self._reason = ""
        self._left = left
        self._attempts = 0 if left is None else left.attempts
        self._epoch: int | None = None if left is None else left.epoch or None
        self._last_epoch = 0 if left is None else left.last_epoch
        self._placement: Placement | None = None if left is None else left.placement
        self._history: list[Json] = [] if left is None else list(left.placements)
        self._model: Model | None = None
        self._next_look_s = 0.0
        self._noting = threading.Lock()
        self._retiring = False
        self._suspended: str | None = None
        self._hurry = threading.Event()
        self._ended = threading.Event()
        self._calls = ShardCalls(
            deployment,
            pool=ports.pool,
            models=ports.models,
            put=self.put,
            request_timeout_s=request.request_timeout_s,
            wire=request.wire,
            kv_cache_bytes=request.kv_cache_bytes,
        )
        if left is not None:
            self._calls.restore(left)

    def run(self) -> None:
        """Read the model, deploy it and keep it until it is taken down or cannot be had."""
        stop_listening = self._ports.pool.subscribe(self._hear)
        try:
            again = "" if self._left is None else "resumed: "
            self._note("preparing", f"{again}reading model {self._request.model}")
            read = self._ports.models.resolve(
                self._request.model, progress=Progress(self._ports.events, self.deployment)
            )
            self._model = read.held_in(self._request.compute)
            self._attempts = 0
            self._calls.model, self._calls.context_tokens = self._model, self.context_tokens
            if self._left is not None:
                self._await_nodes(self._left)
            self.spec = self._make_spec(self._model, self.context_tokens)
            check_cache_limit(  # again: what is read is not always what was there when it was asked for
                self._request,
                own_tokens=self._model.context_tokens,
                kv_bytes_per_token=sum(layer.kv_bytes_per_token for layer in self.spec.model.layers),
            )
            self._loop(Engine(self.spec), self._model)
        except (OrchestratorError, CoreError) as error:
            self._note("failed", str(error))
        except Exception as error:
            log.exception("deployment %s failed", self.deployment)
            self._note("failed", f"{type(error).__name__}: {error}")
        finally:
            stop_listening()
            self._calls.close()
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
    def reason(self) -> str:
        """Give why it is in that state."""
        with self._lock:
            return self._reason

    @property
    def model(self) -> Model | None:
        """Give the model once it has been read."""
        return self._model

    @property
    def context_tokens(self) -> int:
        """Give how many tokens a prompt and its answer may have together."""
        assert self._model is not None
        return context_of(self._request, self._model.context_tokens)

    def head(self) -> str | None:
        """Give the head's node while there is a route."""
        with self._lock:
            return None if self._placement is None else self._placement.head

    def placement(self) -> Placement | None:
        """Give the placement that serves."""
        with self._lock:
            return self._placement

    def memory(self) -> dict[str, int]:
        """Give what this deployment takes of each node, in bytes."""
        return self._calls.memory()

    def serving_epoch(self) -> int | None:
        """Give the route epoch that serves, None before the first."""
        with self._lock:
            return self._epoch

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
        described["kv_cache"] = {
            "limit_bytes": self._request.kv_cache_bytes,
            "used_bytes": {
                record.node: record.cache_bytes[self.deployment]
                for record in self._ports.pool.nodes()
                if self.deployment in record.cache_bytes
            },
        }
        return described

    def put(self, kind: type[m.Event], **values: Any) -> None:
        """Tell the engine that something happened now."""
        self._inbox.put(kind(now_s=self._ports.clock.monotonic_s(), **values))

    def retire(self, reason: str) -> None:
        """Take it down; that is kept at once, so that no later process goes on with it."""
        with self._noting:
            self._retiring = True
            self._keep(RETIRING, reason)
        self._hurry.set()
        self.put(m.UndeployRequested, reason=reason)

    def suspend(self, reason: str) -> None:
        """Let go of it where it is, for another process to go on with it; its running requests end."""
        self._suspended = reason
        self._hurry.set()
        self.put(m.Tick)

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait for the end."""
        return self._ended.wait(timeout_s)

    def _loop(self, engine: Engine, model: Model) -> None:
        self._next_look_s = self._ports.clock.monotonic_s() + self._request.monitor_interval_s
        self._carry_out(engine.handle(self._first_event(model)))
        while self.state not in ENDED:
            event = self._next_event(model)
            if self._suspended is not None and not self._retiring:
                self._let_go(self._suspended)
                return
            self._carry_out(engine.handle(event))

    def _first_event(self, model: Model) -> m.Event:
        left = self._left
        if left is None:
            states, network = self._states(model), self._ports.northbound.network()
            return m.DeployRequested(now_s=self._ports.clock.monotonic_s(), nodes=states, network=network)
        head = None if left.placement is None else left.placement.head
        if head in self._here():
            assert head is not None
            self._calls.command(head, "cancel")  # nobody waits for what it still answers
        emptied = self._calls.emptied(left)
        return m.Resumed(
            now_s=self._ports.clock.monotonic_s(),
            nodes=self._states(model),
            network=self._ports.northbound.network(),
            placement=left.placement,
            epoch=left.epoch,
            last_epoch=left.last_epoch,
            emptied=emptied,
            served=bool(left.placements),
            reason=self._why_resumed(left, model, emptied),
        )

    def _why_resumed(self, left: Left, model: Model, emptied: frozenset[str]) -> str:
        told = "the orchestrator was started again"
        if left.placement is None:
            return f"{told}; nothing served yet"
        if left.model != model.digest:
            return f"{told} and {model.name} has changed since: every node is sent its part anew"
        here = self._here()
        missing = [node for node in left.placement.nodes if node not in here]
        empty = sorted(emptied - set(missing))
        gone = f"; not there: {', '.join(missing)}" if missing else ""
        return f"{told}{gone}" + (f"; without their shards: {', '.join(empty)}" if empty else "")

    def _await_nodes(self, left: Left) -> None:
        """Wait until the nodes that served have attached again; before the first route: all that may come."""
        started_s = self._ports.clock.monotonic_s()
        while True:
            here = self._here()
            known = [one.node for one in self._ports.pool.nodes() if one.enrolled and not one.revoked]
            wanted = known if left.placement is None else left.placement.nodes
            missing = [node for node in wanted if node not in here]
            if not missing or self._ports.clock.monotonic_s() - started_s > RESUME_PATIENCE_S:
                return
            reason = f"resumed: waiting for {', '.join(missing)} to attach again"
            if reason != self.reason:
                self._note("preparing", reason)
            if self._hurry.wait(_RESUME_POLL_S):
                return

    def _here(self) -> set[str]:
        return {record.node for record in self._ports.pool.nodes() if record.alive}

    def _let_go(self, reason: str) -> None:
        """End the running requests, leave the shards where they are."""
        self._generations.fail(self.deployment, f"{reason}; ask again when it is back")
        head = self.head()
        if head is not None:
            self._calls.command(head, "cancel")
        self._note(SUSPENDED, reason)

    def _next_event(self, model: Model) -> m.Event:
        """Give what happened; the environment when it is time to look, a tick when nothing happens."""
        now_s = self._ports.clock.monotonic_s()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + self._request.monitor_interval_s
            return m.EnvironmentTaken(
                now_s=now_s, nodes=self._states(model), network=self._ports.northbound.network()
            )
        try:
            return self._inbox.get(timeout=min(TICK_S, self._next_look_s - now_s))
        except queue.Empty:
            return m.Tick(now_s=self._ports.clock.monotonic_s())

    def _hear(self, event: NodeEvent) -> None:
        if event.kind == "node_lost":
            self.put(m.NodeLost, node=event.node, reason=event.reason)

    def _carry_out(self, instructions: Iterable[m.Instruction]) -> None:
        for instruction in instructions:
            self._carry_out_one(instruction)

    def _carry_out_one(self, instruction: m.Instruction) -> None:
        match instruction:
            case m.PrepareShard():
                self._calls.prepare(instruction)
            case m.CommitShard():
                self._calls.commit(instruction)
            case m.AbortShard(node=node, epoch=epoch):
                self._calls.abort(node, epoch)
            case m.RetireShard(node=node, epoch=epoch):
                self._calls.retire(node, epoch)
            case m.Record(decision=decision):
                log.info("deployment %s: %s: %s", self.deployment, decision.verdict, decision.reason)
                self._ports.events.publish(self.deployment, "decision", decision.to_json())
            case m.FailRequests(reason=reason):
                self._generations.fail(self.deployment, reason)
            case m.Announce():
                self._announce(instruction)
            case _:
                raise TypeError(f"the driver does not know the instruction {type(instruction).__name__}")

    def _announce(self, instruction: m.Announce) -> None:
        placement, epoch = instruction.placement, instruction.epoch
        with self._lock:
            fresh = placement is not None and epoch != self._epoch
            self._epoch, self._placement, self._last_epoch = epoch, placement, instruction.last_epoch
        if fresh and placement is not None:
            served = {
                "epoch": epoch,
                "at": self._ports.clock.unix_s(),
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
            network=self._ports.northbound.network(),
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
        with self._noting:
            if self._retiring and state not in ENDED:
                return
            self._keep(state, reason)

    def _keep(self, state: str, reason: str) -> None:
        """Say what it is now, and keep that."""
        with self._lock:
            self._state, self._reason = state, reason
        log.info("deployment %s: %s: %s", self.deployment, state, reason)
        ended_at = self._ports.clock.unix_s() if state in ENDED else None
        self._ports.store.update(
            self.deployment, state=state, reason=reason, ended_at=ended_at, summary=self._to_leave().to_json()
        )
        self._ports.events.publish(self.deployment, "state", {**self.describe(), "final": state in ENDED})

    def _to_leave(self) -> Left:
        left = self._left or Left(resumes=-1)
        with self._lock:
            return Left(
                epoch=self._epoch or 0,
                last_epoch=self._last_epoch,
                placement=self._placement,
                placements=tuple(self._history),
                model=left.model if self._model is None else self._model.digest,
                memory_bytes=self._calls.memory(),
                resumes=left.resumes + 1,
                attempts=self._attempts,
            )
