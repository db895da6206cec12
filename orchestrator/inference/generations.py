"""Running completions: what the head notifies, handed to whoever reads the answer."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator

from orchestrator.ports import Json

log = logging.getLogger(__name__)


class Generation:
    """One running completion; its notifications come from one thread, its reader is another."""

    def __init__(
        self, *, deployment: str, request: str, head: str, silence_s: float, cancel: Callable[[], None]
    ) -> None:
        self.deployment = deployment
        self.request = request
        self.head = head
        self.prompt_tokens = 0
        self._silence_s = silence_s
        self._cancel = cancel
        self._queue: queue.Queue[Json] = queue.Queue()
        self._over = threading.Event()

    def chunks(self) -> Iterator[Json]:
        """Yield a map per token, last one with `finish_reason`; a silence ends it as an error."""
        while True:
            try:
                chunk = self._queue.get(timeout=self._silence_s)
            except queue.Empty:
                self.cancel()
                detail = f"no token came for {self._silence_s:g} s"
                chunk = {"finish_reason": "error", "detail": detail}
            yield chunk
            if "finish_reason" in chunk:
                return

    def cancel(self) -> None:
        """Tell the head that nobody waits for the answer any more."""
        if not self._over.is_set():
            self._over.set()
            self._cancel()

    def token(self, fields: Json) -> None:
        """Take a token from the head."""
        self._queue.put(
            {
                "index": fields["index"],
                "token": fields["token"],
                "text": fields["text"],
                "epoch": fields["epoch"],
                "elapsed_s": fields["elapsed_s"],
                "replayed": fields["replayed"],
                "margin": fields["margin"],
            }
        )

    def done(self, finish_reason: str, detail: str | None) -> None:
        """Take the end."""
        if not self._over.is_set():
            self._over.set()
            self._queue.put({"finish_reason": finish_reason, "detail": detail})


class Generations:
    """Every running completion, found by (deployment, request)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], Generation] = {}
        self._tokens = 0

    def add(self, generation: Generation) -> None:
        """Have notifications for it find it."""
        with self._lock:
            self._running[generation.deployment, generation.request] = generation

    def token(self, node: str, fields: Json) -> bool:
        """Hand a `token` notification on; says whether it was sound and somebody's."""
        generation = self._find(node, fields)
        fault = token_fault(fields)
        if fault is not None:
            log.warning("token of node %s ignored: %s", node, fault)
            return False
        if generation is None:
            return False
        with self._lock:
            self._tokens += 1
        generation.token(fields)
        return True

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
            return sum(key[0] == deployment for key in self._running)

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
    """Say what is wrong with the fields of a `token` notification; None if nothing is."""
    for name in ("index", "token", "epoch", "replayed"):
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return f"{name} is {value!r}, not a whole number of at least 0"
    for name in ("elapsed_s", "margin"):
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name} is {value!r}, not a finite number"
    if not isinstance(fields.get("text"), str):
        return "text is missing"
    return None
