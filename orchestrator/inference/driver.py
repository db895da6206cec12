"""Split deployments: accepting, serving completions, previewing, migrating, taking down."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import replace

from orchestrator import nodes as node_states
from orchestrator.core.cost import Workload
from orchestrator.core.jsonable import to_json
from orchestrator.core.model import NodeState
from orchestrator.core.replicas import Replica, by_finish
from orchestrator.errors import Conflict, InvalidRequest, Unavailable, WorkerError, WorkerRefused
from orchestrator.inference import messages as m
from orchestrator.inference.asking import Asked
from orchestrator.inference.engine import preview
from orchestrator.inference.generations import Completion, Generation, Generations
from orchestrator.inference.messages import DeploymentSpec
from orchestrator.inference.probes import LayerProbes
from orchestrator.inference.request import DeploymentRequest
from orchestrator.inference.run import (
    COMMAND_TIMEOUT_S,
    ENDED,
    PREPARE_TIMEOUT_S,
    DeploymentRun,
    placement_json,
)
from orchestrator.ports import (
    Clock,
    EventSink,
    Ids,
    Json,
    Model,
    ModelStore,
    Northbound,
    Record,
    Store,
    WorkerPool,
)

log = logging.getLogger(__name__)

_GENERATE_TIMEOUT_S = 20.0
_SILENCE_S = 120.0
_CANCEL_TIMEOUT_S = 5.0
_SERVING = ("serving", "reconfiguring", "degraded")


class SplitDeployments:
    """Every deployment of this process."""

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
    ) -> None:
        self._pool = pool
        self._northbound = northbound
        self._store = store
        self._models = models
        self._events = events
        self._clock = clock
        self._ids = ids
        self._probes = LayerProbes(pool)
        self._generations = Generations()
        self._lock = threading.Lock()
        self._runs: dict[str, DeploymentRun] = {}
        pool.on_notification("token", self._on_token)
        pool.on_notification("done", self._generations.done)
        pool.on_notification("stalled", self._on_stalled)

    def deploy(self, request: DeploymentRequest) -> Record:
        """Check the request and begin to place the model.

        Raises:
            Conflict: nodes are missing that it cannot do without.
            ModelError, NotFound: the model cannot be used.
        """
        self._models.check_split(request.model)
        self._refuse_hopeless(request)
        record = Record(
            id=self._ids("dep"),
            kind="deployment",
            state="accepted",
            created_at=self._clock.unix_s(),
            spec=request.model_dump(mode="json"),
        )
        self._store.add(record)
        run = DeploymentRun(
            deployment=record.id,
            request=request,
            spec=lambda model, context: self._make_spec(record.id, request, model, context),
            states=lambda model: self._states(model, record.id),
            generations=self._generations,
            pool=self._pool,
            northbound=self._northbound,
            store=self._store,
            models=self._models,
            events=self._events,
            clock=self._clock,
        )
        with self._lock:
            self._runs[record.id] = run
        threading.Thread(target=self._keep, args=(run,), name=record.id, daemon=True).start()
        return record

    def undeploy(self, deployment: str) -> Record:
        """Take a deployment down."""
        self._run(deployment).put(m.UndeployRequested)
        return self._store.get(deployment)

    def live(self) -> Sequence[str]:
        """List the deployments that were not taken down and have not failed."""
        with self._lock:
            return sorted(self._runs)

    def describe(self, deployment: str) -> Json:
        """Give what is worth showing of a live deployment; nothing if it has just ended."""
        with self._lock:
            run = self._runs.get(deployment)
        return {} if run is None else run.describe()

    def preview(self, deployment: str) -> Json:
        """Say where the model would be placed now, its head where it is; changes nothing.

        Raises:
            Infeasible: nowhere; the reason names the constraint.
            Unavailable: the model has not been read yet.
        """
        run = self._run(deployment)
        spec, model = run.spec, run.model
        if spec is None or model is None:
            raise Unavailable(f"deployment {deployment} is {run.state}: its model is still being read")
        choice = preview(
            replace(spec, pinned_head=run.head()), self._states(model, deployment), self._northbound.network()
        )
        assert choice.placement is not None
        return {
            "placement": placement_json(choice.placement),
            "reason": choice.reason,
            "alternatives": [to_json(alternative) for alternative in choice.alternatives()],
            "current": run.describe()["placement"],
        }

    def migrate(self, deployment: str) -> None:
        """Have the placement reconsidered now."""
        self._run(deployment).put(m.MigrationRequested)

    def models(self) -> dict[str, list[str]]:
        """Give the names that requests may use, each with its deployments: their ids, and shared names."""
        with self._lock:
            runs = sorted(item for item in self._runs.items() if item[1].state not in ENDED)
        found = {deployment: [deployment] for deployment, _ in runs}
        for deployment, run in runs:
            if run.name is not None and run.name not in self._runs:
                found.setdefault(run.name, []).append(deployment)
        return found

    def complete(self, model: str, asked: Sequence[Asked]) -> Completion:
        """Start the answers to one request at the replica that would finish it first: all of them or none.

        Raises:
            NotFound: no deployment of that name or id lives.
            Unavailable: none has a route at the moment.
            InvalidRequest: prompt and answer do not fit its context, or a setting makes no sense.
        """
        reasons = []
        for deployment in self._by_finish(model, answers=len(asked)):
            try:
                return self._complete(deployment, asked)
            except Unavailable as error:
                log.info("%s: %s", model, error)
                reasons.append(str(error))
        raise Unavailable("; ".join(reasons))

    def _by_finish(self, model: str, *, answers: int) -> list[str]:
        replicas = [
            Replica(
                deployment=deployment,
                running=self._generations.running(deployment),
                token_s=self._generations.token_s(deployment),
            )
            for deployment in self.models().get(model, [model])
        ]
        return by_finish(replicas, answers=answers)

    def _complete(self, deployment: str, asked: Sequence[Asked]) -> Completion:
        run = self._run(deployment)
        head = run.head()
        if head is None or run.state not in _SERVING:
            raise Unavailable(f"deployment {deployment} is {run.state} and has no route yet; try again soon")
        chunks: queue.SimpleQueue[Json] = queue.SimpleQueue()
        started: list[Generation] = []
        try:
            for choice, one in enumerate(asked):
                started.append(self._start(deployment, head, one, choice=choice, chunks=chunks))
        except Exception:
            for generation in started:
                self._generations.remove(generation)
                generation.cancel()
            raise
        return Completion(started, chunks, silence_s=_SILENCE_S)

    def _start(
        self, deployment: str, head: str, asked: Asked, *, choice: int, chunks: queue.SimpleQueue[Json]
    ) -> Generation:
        generation = self._generation(deployment, head, choice=choice, chunks=chunks)
        self._generations.add(generation)
        fields = {"deployment": deployment, "request": generation.request, **asked.fields()}
        try:
            answer = self._pool.request(head, "control", "generate", fields, timeout_s=_GENERATE_TIMEOUT_S)
        except WorkerRefused as error:
            self._generations.remove(generation)
            raise _refusal(error) from error
        except WorkerError as error:
            self._generations.remove(generation)
            raise Unavailable(f"the head of {deployment} does not answer: {error}") from error
        prompt_tokens = answer.fields.get("prompt_tokens")
        generation.prompt_tokens = prompt_tokens if isinstance(prompt_tokens, int) else 0
        return generation

    def chat_prompt(self, model: str, messages: Sequence[Json]) -> str:
        """Write a conversation as the model was taught to read it.

        Raises:
            InvalidRequest: the model's template refuses these messages.
            Unavailable: the model has not been read yet.
        """
        runs = [self._run(deployment) for deployment in self.models().get(model, [model])]
        read = next((run.model for run in runs if run.model is not None), None)
        if read is None:
            raise Unavailable(f"deployment {model} is {runs[0].state}: its model is still being read")
        return self._models.chat_prompt(read, messages)

    def tokens_generated(self) -> int:
        """Count the tokens generated since the start of the process."""
        return self._generations.tokens()

    def stop(self, *, timeout_s: float) -> None:
        """Take every deployment down and wait for that."""
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.put(m.UndeployRequested, reason="the orchestrator stops")
        deadline_s = self._clock.monotonic_s() + timeout_s
        for run in runs:
            run.wait_ended(max(0.0, deadline_s - self._clock.monotonic_s()))

    def _keep(self, run: DeploymentRun) -> None:
        try:
            run.run()
        finally:
            with self._lock:
                self._runs.pop(run.deployment, None)
            self._generations.forget(run.deployment)

    def _run(self, deployment: str) -> DeploymentRun:
        with self._lock:
            run = self._runs.get(deployment)
        if run is None:
            state = self._store.get(deployment).state
            raise Conflict(f"deployment {deployment} is {state}; POST /api/v1/deployments makes a new one")
        return run

    def _refuse_hopeless(self, request: DeploymentRequest) -> None:
        """Refuse at once what no measurement could make possible."""
        alive = [record for record in self._pool.nodes() if record.alive]
        if not any(record.trusted for record in alive):
            raise Conflict(
                "no trusted node is alive, and the head (tokeniser, embedding, LM head) runs on trusted "
                "nodes only; enrol one with a token made with trusted: true"
            )
        if len(alive) < request.min_nodes:
            raise Conflict(
                f"min_nodes is {request.min_nodes} but {len(alive)} nodes are alive; lower it or enrol more"
            )

    def _make_spec(
        self, deployment: str, request: DeploymentRequest, model: Model, context_tokens: int
    ) -> DeploymentSpec:
        """Measure the layers where that was not done yet, and say what is deployed under which rules."""
        self._probes.measure(model)
        generated = min(Workload().generated_tokens, max(1, context_tokens // 2))
        workload = Workload(
            prompt_tokens=min(Workload().prompt_tokens, max(1, context_tokens // 2)),
            generated_tokens=generated,
            context_tokens=context_tokens,
        )
        return DeploymentSpec(
            deployment=deployment,
            model=self._models.graph(model),
            min_nodes=request.min_nodes,
            weights=request.cost,
            workload=workload,
            thresholds=request.thresholds,
            prepare_timeout_s=PREPARE_TIMEOUT_S,
            commit_timeout_s=COMMAND_TIMEOUT_S,
        )

    def _states(self, model: Model, deployment: str) -> tuple[NodeState, ...]:
        """Give the nodes as they are now, with their layer times and what other deployments take of them."""
        with self._lock:
            others = [run.memory() for name, run in self._runs.items() if name != deployment]
        states = []
        for record in self._pool.nodes():
            times = self._probes.times(record, model)
            states.append(
                replace(
                    node_states.state(record),
                    decode_layer_s=times.decode_s,
                    prefill_layer_s_per_token=times.prefill_s_per_token,
                    reserved_bytes=sum(memory.get(record.node, 0) for memory in others),
                )
            )
        return tuple(states)

    def _generation(
        self, deployment: str, head: str, *, choice: int, chunks: queue.SimpleQueue[Json]
    ) -> Generation:
        request = self._ids("cmpl")

        def cancel() -> None:
            fields = {"deployment": deployment, "request": request}
            try:
                self._pool.request(head, "control", "cancel", fields, timeout_s=_CANCEL_TIMEOUT_S)
            except WorkerError as error:
                log.info("request %s could not be cancelled: %s", request, error)

        return Generation(
            deployment=deployment, request=request, head=head, choice=choice, chunks=chunks, cancel=cancel
        )

    def _on_token(self, node: str, fields: Json) -> None:
        if not self._generations.token(node, fields):
            return
        with self._lock:
            run = self._runs.get(fields["deployment"])
        if run is not None:
            run.put(
                m.TokenObserved,
                epoch=fields["epoch"],
                request=fields["request"],
                index=fields["index"],
                elapsed_s=max(0.0, float(fields["elapsed_s"])),
                replayed=fields["replayed"],
            )

    def _on_stalled(self, node: str, fields: Json) -> None:
        with self._lock:
            run = self._runs.get(str(fields.get("deployment")))
        epoch, request = fields.get("epoch"), fields.get("request")
        if run is None or run.head() != node or not isinstance(epoch, int) or not isinstance(request, str):
            log.warning("node %s reports a stall that is nobody's: %r", node, fields)
            return
        run.put(m.Stalled, epoch=epoch, request=request, detail=str(fields.get("detail", "")))


def _refusal(error: WorkerRefused) -> Exception:
    """Turn the head's refusal of a request into what the client is told."""
    if error.code == "context-exceeded":
        return InvalidRequest(str(error), field="prompt")
    if error.code in ("bad-field", "bad-tensor"):
        return InvalidRequest(str(error))
    return Unavailable(str(error))
