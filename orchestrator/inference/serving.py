"""Requests to deployments: started at their heads, what comes of them handed to whoever waits."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from orchestrator.core.replicas import Replica, by_finish
from orchestrator.errors import InvalidRequest, Unavailable, WorkerError, WorkerRefused, WorkerTimeout
from orchestrator.inference import messages as m
from orchestrator.inference.asking import Asked
from orchestrator.inference.generations import Completion, Generation, Generations
from orchestrator.inference.run import DeploymentRun
from orchestrator.ports import Answer, Ids, Json, WorkerPool

log = logging.getLogger(__name__)

_GENERATE_TIMEOUT_S = 20.0
_SILENCE_S = 120.0
_CANCEL_TIMEOUT_S = 5.0
_ASKED_AT_ONCE = 32
"""Requests that a head is asked to begin at a time, half of what a worker takes of us; the others wait."""
_SERVING = ("serving", "reconfiguring", "degraded")


class Serving:
    """Asks heads for answers and hears what they tell; `run_of` finds a live deployment by its id."""

    def __init__(
        self,
        *,
        pool: WorkerPool,
        generations: Generations,
        ids: Ids,
        run_of: Callable[[str], DeploymentRun | None],
    ) -> None:
        self._pool = pool
        self._generations = generations
        self._ids = ids
        self._run_of = run_of
        self._lock = threading.Lock()
        self._turns: dict[str, threading.BoundedSemaphore] = {}
        pool.on_notification("tokens", self._on_tokens)
        pool.on_notification("done", generations.done)
        pool.on_notification("stalled", self._on_stalled)
        pool.on_notification("waiting", generations.waiting)

    def complete(self, replicas: Sequence[DeploymentRun], asked: Sequence[Asked]) -> Completion:
        """Start the answers to one request at the replica that would finish it first: all of them or none.

        Raises:
            Unavailable: none has a route at the moment.
            InvalidRequest: prompt and answer do not fit its context, or a setting makes no sense.
        """
        reasons = []
        for run in self._by_finish(replicas, answers=len(asked)):
            try:
                return self._complete(run, asked)
            except Unavailable as error:
                log.info("%s", error)
                reasons.append(str(error))
        raise Unavailable("; ".join(reasons))

    def _by_finish(self, runs: Sequence[DeploymentRun], *, answers: int) -> list[DeploymentRun]:
        by_name = {run.deployment: run for run in runs}
        replicas = [
            Replica(
                deployment=name,
                running=self._generations.running(name),
                token_s=self._generations.token_s(name),
            )
            for name in by_name
        ]
        return [by_name[name] for name in by_finish(replicas, answers=answers)]

    def _complete(self, run: DeploymentRun, asked: Sequence[Asked]) -> Completion:
        deployment, head = run.deployment, run.head()
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
            answer = self._in_turn(head, fields)
        except WorkerRefused as error:
            self._generations.remove(generation)
            raise _refusal(error) from error
        except WorkerError as error:
            self._generations.remove(generation)
            raise Unavailable(f"the head of {deployment} does not answer: {error}") from error
        prompt_tokens = answer.fields.get("prompt_tokens")
        generation.prompt_tokens = prompt_tokens if isinstance(prompt_tokens, int) else 0
        return generation

    def _in_turn(self, head: str, fields: Json) -> Answer:
        """Ask a head to begin an answer, when it is this request's turn.

        Raises:
            WorkerError: it refused or did not answer, or its turn did not come.
        """
        with self._lock:
            turn = self._turns.setdefault(head, threading.BoundedSemaphore(_ASKED_AT_ONCE))
        if not turn.acquire(timeout=_GENERATE_TIMEOUT_S):
            raise WorkerTimeout(
                f"node {head} did not begin any of {_ASKED_AT_ONCE} requests within "
                f"{_GENERATE_TIMEOUT_S:g} s; ask again later"
            )
        try:
            return self._pool.request(head, "control", "generate", fields, timeout_s=_GENERATE_TIMEOUT_S)
        finally:
            turn.release()

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

    def _on_tokens(self, node: str, fields: Json) -> None:
        """Hand on what a head tells together: a token of each of several requests."""
        deployment, tokens = fields.get("deployment"), fields.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(item, dict) for item in tokens):
            log.warning("tokens of node %s ignored: they are no list of maps", node)
            return
        for item in tokens:
            self._on_token(node, {**item, "deployment": deployment})

    def _on_token(self, node: str, fields: Json) -> None:
        if not self._generations.token(node, fields):
            return
        run = self._run_of(fields["deployment"])
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
        run = self._run_of(str(fields.get("deployment")))
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
