"""The usual figures of a language model server, taken where its answers pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from orchestrator.api.services import Completion
from orchestrator.api.timings import PARTS
from orchestrator.ports import Json

_FIRST_TOKEN_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_REQUEST_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


class ServingMetrics:
    """Counts requests and tokens per model, and how long they take."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        """Register them; `clock` gives monotonic seconds."""
        model = ["model"]
        self._clock = clock
        self.first_token = Histogram(
            "utopia_time_to_first_token_seconds", "From the request to the first token of an answer",
            model, registry=registry, buckets=_FIRST_TOKEN_S,
        )  # fmt: skip
        self.token = Histogram(
            "utopia_time_per_output_token_seconds", "Between the tokens of an answer, at the head",
            model, registry=registry, buckets=_TOKEN_S,
        )  # fmt: skip
        self.request = Histogram(
            "utopia_request_duration_seconds", "From the request to the end of its last answer",
            model, registry=registry, buckets=_REQUEST_S,
        )  # fmt: skip
        self.prompt_tokens = Counter("utopia_prompt_tokens", "Tokens of prompts", model, registry=registry)
        self.tokens = Counter("utopia_output_tokens", "Tokens of answers", model, registry=registry)
        self.answers = Counter(
            "utopia_answers", "Answers by how they ended", [*model, "finish_reason"], registry=registry
        )
        self.spent = Counter(
            "utopia_token_time_seconds", "Where the time of tokens went, by the nodes' own durations",
            [*model, "phase", "part", "emulated"], registry=registry,
        )  # fmt: skip
        self.spent_on_node = Counter(
            "utopia_node_token_time_seconds", "What nodes took for tokens, and how long those waited there",
            [*model, "node", "part", "emulated"], registry=registry,
        )  # fmt: skip
        self.refused = Counter(
            "utopia_requests_refused", "Requests that got no answer at all, by why",
            [*model, "error"], registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "utopia_requests_waiting", "Requests that have no token yet", model, registry=registry
        )
        self.running = Gauge("utopia_requests_running", "Requests being answered", model, registry=registry)

    def started(self, model: str, start: Callable[[], Completion], *, choices: int) -> Completion:
        """Start a completion, with `choices` answers to each prompt; its chunks are counted as they pass."""
        began_s = self._clock()
        with self.waiting.labels(model).track_inprogress():
            try:
                completion = start()
            except Exception as error:
                self.refused.labels(model, type(error).__name__).inc()
                raise
        return _Observed(self, model, completion, choices=choices, began_s=began_s)

    def now_s(self) -> float:
        """Read the clock."""
        return self._clock()


class _Observed:
    """A completion whose chunks are counted."""

    def __init__(
        self, metrics: ServingMetrics, model: str, completion: Completion, *, choices: int, began_s: float
    ) -> None:
        self._metrics = metrics
        self._model = model
        self._completion = completion
        self._choices = choices
        self._began_s = began_s
        self._last_s: dict[int, float] = {}

    @property
    def request(self) -> str:
        return self._completion.request

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        return self._completion.prompt_tokens

    def cancel(self) -> None:
        self._completion.cancel()

    def chunks(self) -> Iterator[Json]:
        metrics, model = self._metrics, self._model
        metrics.prompt_tokens.labels(model).inc(sum(self.prompt_tokens[:: self._choices]))
        running, waiting = metrics.running.labels(model), metrics.waiting.labels(model)
        running.inc()
        waiting.inc()
        unfinished = set(range(len(self.prompt_tokens)))
        try:
            for chunk in self._completion.chunks():
                waited = not self._last_s
                self._count(chunk, unfinished)
                if waited and self._last_s:
                    waiting.dec()
                yield chunk
        finally:
            running.dec()
            if not self._last_s:
                waiting.dec()
            metrics.request.labels(model).observe(metrics.now_s() - self._began_s)
            if unfinished:
                metrics.answers.labels(model, "cancelled").inc(len(unfinished))

    def _count(self, chunk: Json, unfinished: set[int]) -> None:
        metrics, choice = self._metrics, chunk.get("choice", 0)
        if "finish_reason" in chunk:
            unfinished.discard(choice)
            metrics.answers.labels(self._model, chunk["finish_reason"]).inc()
            return
        now_s = metrics.now_s()
        metrics.tokens.labels(self._model).inc()
        if choice in self._last_s:
            metrics.token.labels(self._model).observe(chunk["elapsed_s"])
        else:
            metrics.first_token.labels(self._model).observe(now_s - self._began_s)
        if "compute_s" in chunk:
            self._count_time(chunk, phase="decode" if choice in self._last_s else "prompt")
        self._last_s[choice] = now_s

    def _count_time(self, chunk: Json, *, phase: str) -> None:
        metrics, emulated = self._metrics, str(chunk["emulated"]).lower()
        for part in PARTS:
            metrics.spent.labels(self._model, phase, part, emulated).inc(chunk[f"{part}_s"])
        for node, compute_s, queue_s in chunk["nodes"]:
            for part, seconds in (("compute", compute_s), ("queue", queue_s)):
                metrics.spent_on_node.labels(self._model, node, part, emulated).inc(seconds)
