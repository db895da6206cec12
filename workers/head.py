"""The head of a deployment: runs generations round the ring, token by token, across route epochs.

Everything here is used by the compute thread only. A generation has at most one pass round the ring under
way. When another epoch is committed, every generation is replayed through the new ring from its tokens;
what still comes out of the old one is not waited for and not used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from workers.kv_cache import CacheError
from workers.models.tokenizer import TextStream
from workers.sampling import GREEDY, Choice, Sampling
from workers.stage import Stage
from workers.stopping import StopTexts

logger = logging.getLogger(__name__)

MAX_GENERATIONS = 256

Notify = Callable[[str, dict[str, Any]], None]


@dataclass(slots=True, kw_only=True)
class Generation:
    """One request that is being answered."""

    request: str
    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    text: TextStream
    last_token_s: float
    sampling: Sampling = GREEDY
    stops: StopTexts = field(default_factory=StopTexts)
    stage: Stage | None = None
    """Whose ring holds the caches; None before the first pass."""
    cached: int = 0
    """Tokens whose rows have gone into that ring."""
    sequence: int = 0
    replayed: int = 0
    due_s: float | None = None
    """When the pass under way is overdue; None if none is, or it was told already."""
    in_flight: bool = False
    scheduled: bool = False
    ended: bool = False

    @property
    def made(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_tokens


class Head:
    """The generations of one deployment.

    `follow_up` queues a task for the compute thread, `notify` tells the orchestrator and never waits.
    """

    def __init__(
        self,
        deployment: str,
        *,
        notify: Notify,
        follow_up: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
    ) -> None:
        self._deployment = deployment
        self._notify = notify
        self._follow_up = follow_up
        self._clock = clock
        self._current: Stage | None = None
        self._generations: dict[str, Generation] = {}

    def start(self, generation: Generation) -> str | None:
        """Begin to answer a request; returns why not, if so."""
        if generation.request in self._generations:
            return f"request {generation.request!r} is already running"
        if len(self._generations) >= MAX_GENERATIONS:
            return f"{MAX_GENERATIONS} requests are running"
        self._generations[generation.request] = generation
        self._schedule(generation)
        return None

    def cancel(self, request: str) -> None:
        """End a request, if it is running."""
        generation = self._generations.get(request)
        if generation:
            self._end(generation, "cancelled")

    def switch(self, stage: Stage) -> None:
        """Go on with a newly committed epoch."""
        self._current = stage
        for generation in self._generations.values():
            generation.in_flight, generation.due_s = False, None
            self._schedule(generation)

    def retire(self, epoch: int) -> None:
        """End everything if the committed epoch is this one or older."""
        if self._current and self._current.epoch <= epoch:
            for generation in list(self._generations.values()):
                self._end(generation, "error", "the deployment was retired on its head")
            self._current = None

    def came_round(self, stage: Stage, request: str, position: int, sequence: int, rows: Tensor) -> None:
        """Take rows [T, H] from the ring's last node; what belongs to no pass under way is dropped."""
        generation = self._generations.get(request)
        if generation is None or not generation.in_flight or generation.stage is not stage:
            return
        if sequence != generation.sequence:
            return
        try:
            rows = stage.run(request, position, rows) if stage.assignment.ends_ring else rows
        except CacheError as error:
            self._end(generation, "error", f"{error.code} on the head: {error}")
            return
        self._take(generation, stage, rows)

    def failed(self, stage: Stage, request: str, detail: str) -> None:
        """Learn that a node of the ring cannot serve a request."""
        generation = self._generations.get(request)
        if generation and generation.stage is stage:
            self._end(generation, "error", detail)

    def tell_overdue(self) -> float | None:
        """Tell of passes that are overdue; return the seconds until the next one may be, None if none is."""
        now_s = self._clock()
        for generation in self._generations.values():
            if generation.due_s is not None and generation.due_s <= now_s:
                self._tell_stalled(generation)
        dues = [generation.due_s for generation in self._generations.values() if generation.due_s is not None]
        return max(0.0, min(dues) - now_s) if dues else None

    def _tell_stalled(self, generation: Generation) -> None:
        assert generation.stage is not None
        generation.due_s = None
        timeout_s = generation.stage.assignment.request_timeout_s
        detail = f"the ring of epoch {generation.stage.epoch} has not answered for {timeout_s:g} s"
        logger.warning("%s, request %s: %s", self._deployment, generation.request, detail)
        self._tell("stalled", generation, epoch=generation.stage.epoch, detail=detail)

    def _schedule(self, generation: Generation) -> None:
        if not generation.scheduled:
            generation.scheduled = True
            self._follow_up(lambda: self._advance(generation))

    def _advance(self, generation: Generation) -> None:
        """Send the rows that the ring does not have yet on their way."""
        generation.scheduled = False
        stage = self._current
        if generation.ended or generation.in_flight or stage is None:
            return
        if generation.stage is not stage:
            self._leave_ring(generation)
            generation.replayed = len(generation.tokens) if generation.stage else 0
            generation.stage, generation.cached = stage, 0
        try:
            self._send_round(generation, stage)
        except CacheError as error:
            self._end(generation, "error", f"{error.code} on the head: {error}")

    def _send_round(self, generation: Generation, stage: Stage) -> None:
        position = generation.cached
        rows = stage.embed(generation.tokens[position:])
        if stage.assignment.starts_ring:
            rows = stage.run(generation.request, position, rows)
        generation.cached = len(generation.tokens)
        generation.sequence += 1
        if stage.link is None:
            self._take(generation, stage, rows)
            return
        generation.in_flight = True
        generation.due_s = self._clock() + stage.assignment.request_timeout_s
        fields = {
            "deployment": self._deployment,
            "epoch": stage.epoch,
            "request": generation.request,
            "position": position,
            "sequence": generation.sequence,
        }
        stage.link.send("activation", fields, {"x": rows.numpy()})

    def _take(self, generation: Generation, stage: Stage, rows: Tensor) -> None:
        generation.in_flight, generation.due_s = False, None
        choice = stage.choose(
            rows[-1], generation.sampling, generation.tokens, prompt_tokens=generation.prompt_tokens
        )
        if not math.isfinite(choice.margin):
            self._end(generation, "error", "the model's output is not finite: a node sent broken rows")
            return
        generation.tokens.append(choice.token)
        finish = self._finish_reason(generation, stage, choice.token)
        text, stopped = generation.stops.push(generation.text.push(choice.token))
        if finish and not stopped:
            rest, stopped = generation.stops.push(generation.text.flush())
            text += rest if stopped else rest + generation.stops.flush()
        finish = "stop" if stopped else finish
        self._tell_token(generation, stage, choice, text=text)
        if finish:
            self._end(generation, finish)
        else:
            self._schedule(generation)

    def _finish_reason(self, generation: Generation, stage: Stage, token: int) -> str | None:
        if token in stage.assignment.config.end_tokens:
            return "stop"
        return "length" if generation.made >= generation.max_tokens else None

    def _tell_token(self, generation: Generation, stage: Stage, choice: Choice, *, text: str) -> None:
        now_s = self._clock()
        self._tell(
            "token",
            generation,
            index=generation.made - 1,
            token=choice.token,
            text=text,
            epoch=stage.epoch,
            elapsed_s=now_s - generation.last_token_s,
            replayed=generation.replayed,
            margin=choice.margin,
            **_probabilities(stage, choice),
        )
        generation.last_token_s, generation.replayed = now_s, 0

    def _end(self, generation: Generation, reason: str, detail: str = "") -> None:
        generation.ended = True
        del self._generations[generation.request]
        self._leave_ring(generation)
        self._tell("done", generation, finish_reason=reason, detail=detail, tokens=generation.made)

    def _leave_ring(self, generation: Generation) -> None:
        """Free the caches of the ring that the generation used, unless that epoch is gone already."""
        stage = generation.stage
        if stage is None or stage.closed:
            return
        stage.forget(generation.request)
        if stage.link:
            fields = {"deployment": self._deployment, "epoch": stage.epoch, "request": generation.request}
            stage.link.send("release", fields)

    def _tell(self, kind: str, generation: Generation, **fields: Any) -> None:
        self._notify(kind, {"deployment": self._deployment, "request": generation.request, **fields})


def _probabilities(stage: Stage, choice: Choice) -> dict[str, Any]:
    """Return how likely the chosen token was, and the likeliest ones, each with its text."""
    if choice.log_probability is None:
        return {}
    assert stage.tokenizer is not None
    text = stage.tokenizer.token_text
    likely = [[token, text(token), value] for token, value in choice.alternatives]
    return {"logprob": choice.log_probability, "token_text": text(choice.token), "top_logprobs": likely}
