"""Running completions: what the head notifies, handed to whoever reads the answer."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from orchestrator.ports import Json

log = logging.getLogger(__name__)

PACE_SMOOTHING = 0.05


_PARTS = ("compute_s", "queue_s", "wire_s")
_MORE_TOLD = ("logprob", "token_text", "top_logprobs", *_PARTS, "emulated", "nodes")
_MOST_NODES = 65
_LONGEST_NODE = 128


class Generation:
    """One answer in the making; its notifications come from one thread, its reader is another."""

    def __init__(
        self,
        *,
        deployment: str,
        request: str,
        head: str,
        choice: int,
        chunks: queue.SimpleQueue[Json],
        cancel: Callable[[], None],
    ) -> None:
        self.deployment = deployment
        self.request = request
        self.head = head
        self.choice = choice
        self.prompt_tokens = 0
        self._chunks = chunks
        self._cancel = cancel
        self._over = threading.Event()

    def cancel(self) -> None:
        """Tell the head that nobody waits for the answer any more."""
        if not self._over.is_set():
            self._over.set()
            self._cancel()

    def token(self, fields: Json) -> None:
        """Take a token from the head."""
        told = ("index", "token", "text", "epoch", "elapsed_s", "replayed", "margin")
        chunk = {name: fields[name] for name in told}
        chunk |= {name: fields[name] for name in _MORE_TOLD if name in fields}
        self._chunks.put({"choice": self.choice, **chunk})

    def waiting(self) -> None:
        """Learn that it waits on its head until there is room for its caches."""
        self._chunks.put({"choice": self.choice, "waiting": True})

    def done(self, finish_reason: str, detail: str | None) -> None:
        """Take the end."""
        if not self._over.is_set():
            self._over.set()
            self._chunks.put({"choice": self.choice, "finish_reason": finish_reason, "detail": detail})


class Completion:
    """The answers to one request: one per prompt and choice."""

    def __init__(
        self, generations: Sequence[Generation], chunks: queue.SimpleQueue[Json], *, silence_s: float
    ):
        self._generations = generations
        self._queue = chunks
        self._silence_s = silence_s

    @property
    def request(self) -> str:
        """Give the id of the first answer."""
        return self._generations[0].request

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """Give the tokens of the prompt of each answer."""
        return tuple(generation.prompt_tokens for generation in self._generations)

    def chunks(self) -> Iterator[Json]:
        """Yield a map per token, and per answer a last one with `finish_reason`; each names its `choice`.

        A silence, of heads that do not even say that it waits, ends what is unfinished as an error.
        """
        waiting = {generation.choice for generation in self._generations}
        while waiting:
            try:
                chunk = self._queue.get(timeout=self._silence_s)
            except queue.Empty:
                self.cancel()
                detail = f"no token came for {self._silence_s:g} s"
                for choice in sorted(waiting):
                    yield {"choice": choice, "finish_reason": "error", "detail": detail}
                return
            if chunk["choice"] in waiting and "waiting" not in chunk:
                yield chunk
            if "finish_reason" in chunk:
                waiting.discard(chunk["choice"])

    def cancel(self) -> None:
        """Tell the heads that nobody waits any more."""
        for generation in self._generations:
            generation.cancel()


class Generations:
    """Every running completion, found by (deployment, request)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], Generation] = {}
        self._token_s: dict[str, float] = {}
        self._tokens = 0

    def add(self, generation: Generation) -> None:
        """Have notifications for it find it."""
        with self._lock:
            self._running[generation.deployment, generation.request] = generation

    def token(self, node: str, fields: Json) -> bool:
        """Hand a token of a head's on; says whether it was sound and somebody's."""
        generation = self._find(node, fields)
        fault = token_fault(fields)
        if fault is not None:
            log.warning("token of node %s ignored: %s", node, fault)
            return False
        if generation is None:
            return False
        with self._lock:
            self._tokens += 1
            if fields["index"] > 0 and fields["replayed"] == 0:
                self._note_pace(generation.deployment, max(0.0, float(fields["elapsed_s"])))
        generation.token(fields)
        return True

    def waiting(self, node: str, fields: Json) -> None:
        """Have a completion's reader go on waiting, since its head has it wait."""
        generation = self._find(node, fields)
        if generation is not None:
            generation.waiting()

    def done(self, node: str, fields: Json) -> None:
        """Hand a `done` notification on and forget the completion."""
        generation = self._find(node, fields)
        if generation is not None:
            self.remove(generation)
            reason = fields.get("finish_reason")
            known = reason in ("length", "stop", "cancelled", "error")
            detail = fields.get("detail")
            generation.done(str(reason) if known else "error", str(detail) if detail else None)

    def fail(self, deployment: str, reason: str) -> None:
        """End every running completion of a deployment as an error."""
        with self._lock:
            failed = [item for key, item in self._running.items() if key[0] == deployment]
        for generation in failed:
            self.remove(generation)
            generation.done("error", reason)

    def token_s(self, deployment: str) -> float | None:
        """Give how many seconds a deployment took for a token lately, all its answers together."""
        with self._lock:
            return self._token_s.get(deployment)

    def forget(self, deployment: str) -> None:
        """Forget how fast a deployment was that has ended."""
        with self._lock:
            self._token_s.pop(deployment, None)

    def _note_pace(self, deployment: str, elapsed_s: float) -> None:
        """Take the time between two tokens of one answer in; the lock is held."""
        token_s = elapsed_s / max(1, self._count(deployment))
        before_s = self._token_s.get(deployment, token_s)
        self._token_s[deployment] = before_s + (token_s - before_s) * PACE_SMOOTHING

    def _count(self, deployment: str) -> int:
        return sum(key[0] == deployment for key in self._running)

    def remove(self, generation: Generation) -> None:
        """Forget a completion."""
        with self._lock:
            self._running.pop((generation.deployment, generation.request), None)

    def tokens(self) -> int:
        """Count the tokens handed on since the start."""
        with self._lock:
            return self._tokens

    def running(self, deployment: str) -> int:
        """Count the running completions of a deployment."""
        with self._lock:
            return self._count(deployment)

    def _find(self, node: str, fields: Json) -> Generation | None:
        deployment, request = fields.get("deployment"), fields.get("request")
        if not isinstance(deployment, str) or not isinstance(request, str):
            return None
        with self._lock:
            generation = self._running.get((deployment, request))
        if generation is not None and generation.head != node:
            log.warning("node %s speaks for request %s, whose head is %s", node, request, generation.head)
            return None
        return generation


def token_fault(fields: Json) -> str | None:
    """Say what is wrong with the fields of a told token; None if nothing is."""
    for name in ("index", "token", "epoch", "replayed"):
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return f"{name} is {value!r}, not a whole number of at least 0"
    for name in ("elapsed_s", "margin"):
        value = fields.get(name)
        if not _is_number(value):
            return f"{name} is {value!r}, not a finite number"
    if not isinstance(fields.get("text"), str):
        return "text is missing"
    fault = _probability_fault(fields) if "logprob" in fields else None
    return fault or (_timing_fault(fields) if "compute_s" in fields else None)


def _timing_fault(fields: Json) -> str | None:
    if not all(_is_duration(fields.get(name)) for name in _PARTS):
        return f"one of {', '.join(_PARTS)} is no duration"
    nodes = fields.get("nodes")
    if (
        not isinstance(nodes, list)
        or len(nodes) > _MOST_NODES
        or not isinstance(fields.get("emulated"), bool)
    ):
        return f"nodes is no list of at most {_MOST_NODES}, or emulated is missing"
    for item in nodes:
        if not isinstance(item, list) or len(item) != 3 or not all(map(_is_duration, item[1:])):
            return "one of nodes is not a name and two durations"
        if not isinstance(item[0], str) or not 0 < len(item[0]) <= _LONGEST_NODE:
            return "one of nodes has no name"
    return None


def _is_duration(value: object) -> bool:
    return _is_number(value) and value >= 0  # type: ignore[operator]


def _probability_fault(fields: Json) -> str | None:
    likely = fields.get("top_logprobs")
    if not isinstance(likely, list) or not isinstance(fields.get("token_text"), str):
        return "token_text or top_logprobs is missing"
    sound = all(
        isinstance(item, list) and len(item) == 3 and isinstance(item[1], str) and _is_number(item[2])
        for item in likely
    )
    if not sound or not _is_number(fields["logprob"]):
        return "a probability is not a finite number"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
