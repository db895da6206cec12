"""Split deployments: accepting, serving completions, previewing, migrating, taking down."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError

from orchestrator import nodes as node_states
from orchestrator.core.cost import Workload
from orchestrator.core.errors import CoreError
from orchestrator.core.jsonable import to_json
from orchestrator.core.model import NodeState
from orchestrator.errors import Conflict, OrchestratorError, Unavailable
from orchestrator.inference import left as lefts
from orchestrator.inference import messages as m
from orchestrator.inference.asking import Asked
from orchestrator.inference.cache_limit import check_cache_limit
from orchestrator.inference.engine import preview
from orchestrator.inference.generations import Completion, Generations
from orchestrator.inference.left import Left, placement_json
from orchestrator.inference.messages import DeploymentSpec
from orchestrator.inference.probes import LayerProbes
from orchestrator.inference.request import DeploymentRequest
from orchestrator.inference.run import ENDED, DeploymentRun
from orchestrator.inference.serving import Serving
from orchestrator.inference.shard_calls import COMMAND_TIMEOUT_S, PREPARE_TIMEOUT_S
from orchestrator.inference.strays import Sweeper
from orchestrator.ports import Json, Model, Ports, Record

log = logging.getLogger(__name__)


class SplitDeployments:
    """Every deployment of this process."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._probes = LayerProbes(ports.pool)
        self._generations = Generations()
        self._lock = threading.Lock()
        self._runs: dict[str, DeploymentRun] = {}
        self._serving = Serving(
            pool=ports.pool, generations=self._generations, ids=ports.ids, run_of=self._runs.get
        )
        self._sweeper = Sweeper(ports.pool, self._served_epochs)

    def deploy(self, request: DeploymentRequest) -> Record:
        """Check the request and begin to place the model.

        Raises:
            Conflict: nodes are missing that it cannot do without.
            ModelError, NotFound: the model cannot be used.
            ImpossibleRequest: its caches could not hold one sequence, wherever its layers were.
        """
        model = self._ports.models.check_split(request.model)
        check_cache_limit(
            request,
            own_tokens=model.context_tokens,
            kv_bytes_per_token=model.layers * model.kv_bytes_per_token_and_layer,
        )
        self._refuse_hopeless(request)
        record = Record(
            id=self._ports.ids("dep"),
            kind="deployment",
            state="accepted",
            created_at=self._ports.clock.unix_s(),
            spec=request.model_dump(mode="json"),
        )
        self._ports.store.add(record)
        self._start(record.id, request)
        return record

    def resume(self) -> list[str]:
        """Go on with what an earlier process left, and free what nodes hold in vain; answers the names.

        To be called before anything is deployed. What cannot be gone on with has failed, with the reason;
        what the user had taken down already is retired.
        """
        resumed = [
            record.id
            for record in reversed(self._ports.store.unfinished("deployment"))
            if self._resume(record)
        ]
        self._sweeper.start()
        return resumed

    def abandon(self) -> None:
        """End what an earlier process left."""
        for record in self._ports.store.unfinished("deployment"):
            self._give_up(record, "interrupted", "the orchestrator stopped before it ended")
        self._sweeper.start()

    def undeploy(self, deployment: str) -> Record:
        """Take a deployment down."""
        self._run(deployment).retire("asked by the operator")
        return self._ports.store.get(deployment)

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
            replace(spec, pinned_head=run.head()),
            self._states(model, deployment),
            self._ports.northbound.network(),
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
        runs = [self._run(deployment) for deployment in self.models().get(model, [model])]
        return self._serving.complete(runs, asked)

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
        return self._ports.models.chat_prompt(read, messages)

    def tokens_generated(self) -> int:
        """Count the tokens generated since the start of the process."""
        return self._generations.tokens()

    def stop(self, *, timeout_s: float) -> None:
        """Let go of every deployment, so that the next process goes on with it, and wait for that."""
        self._sweeper.stop()
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.suspend("the orchestrator stops")
        deadline_s = self._ports.clock.monotonic_s() + timeout_s
        for run in runs:
            run.wait_ended(max(0.0, deadline_s - self._ports.clock.monotonic_s()))

    def _resume(self, record: Record) -> bool:
        if record.state == lefts.RETIRING:
            self._give_up(record, "retired", record.reason or "taken down before the orchestrator stopped")
            return False
        try:
            request, left = DeploymentRequest(**record.spec), lefts.read(record.summary)
            if left.attempts >= lefts.ATTEMPTS_LIMIT and record.state != lefts.SUSPENDED:
                raise Conflict(
                    f"{left.attempts} processes in a row ended before they had read its model; "
                    "the log says why they ended"
                )
        except (
            OrchestratorError,
            CoreError,
            ValidationError,
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            self._give_up(record, "failed", f"it cannot be gone on with: {error}")
            return False
        log.info("deployment %s is gone on with", record.id)
        self._start(record.id, request, replace(left, attempts=left.attempts + 1))
        return True

    def _give_up(self, record: Record, state: str, reason: str) -> None:
        log.warning("deployment %s: %s: %s", record.id, state, reason)
        self._ports.store.update(record.id, state=state, reason=reason, ended_at=self._ports.clock.unix_s())
        self._ports.events.publish(record.id, "state", {"state": state, "reason": reason, "final": True})

    def _start(self, deployment: str, request: DeploymentRequest, left: Left | None = None) -> None:
        run = DeploymentRun(
            deployment=deployment,
            request=request,
            spec=lambda model, context: self._make_spec(deployment, request, model, context),
            states=lambda model: self._states(model, deployment),
            generations=self._generations,
            ports=self._ports,
            left=left,
        )
        with self._lock:
            self._runs[deployment] = run
        threading.Thread(target=self._keep, args=(run,), name=deployment, daemon=True).start()

    def _served_epochs(self) -> dict[str, int | None]:
        with self._lock:
            return {name: run.serving_epoch() for name, run in self._runs.items()}

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
            state = self._ports.store.get(deployment).state
            raise Conflict(f"deployment {deployment} is {state}; POST /api/v1/deployments makes a new one")
        return run

    def _refuse_hopeless(self, request: DeploymentRequest) -> None:
        """Refuse at once what no measurement could make possible."""
        alive = [record for record in self._ports.pool.nodes() if record.alive]
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
            model=self._ports.models.graph(model, wire=request.wire),
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
        for record in self._ports.pool.nodes():
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
