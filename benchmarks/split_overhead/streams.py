"""Many clients that read streamed answers at once, and what each of them got."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchmarks.split_overhead.figures import first_difference

PROMPTS = ("The network ", "A node ", "Delay is ", "x")
TOKENS = 24
_TIMEOUT_S = 150.0
_TIE = 1e-4
"""Logits nearer to each other than this may change places by rounding (DESIGN.md, section 7)."""


class Broken(Exception):
    """An answer that did not come as it should; the text says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A streamed answer: its tokens, by how much each was the best, and when each came, after the request."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    came_s: tuple[float, ...]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What all clients got; guarded by its lock while they run."""

    seconds: float = 0.0
    """From the first request to the end of the last answer."""
    answers: int = 0
    tokens: int = 0
    ties: int = 0
    differing: int = 0
    misplaced: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, answer: Answer, undisturbed: Answer) -> None:
        """Take in an answer that came whole, and compare it with what an undisturbed request got."""
        same = answer.tokens == undisturbed.tokens
        tie = not same and _at_a_tie(answer, undisturbed)
        with self.lock:
            self.answers += 1
            self.tokens += len(answer.tokens)
            self.ties += tie
            self.differing += not same and not tie
            self.first_s.append(answer.came_s[0])

    def fail(self, error: Exception) -> None:
        """Take in that an answer did not come as it should."""
        with self.lock:
            self.misplaced += isinstance(error, Misplaced)
            self.errors[f"{type(error).__name__}: {error}"[:200]] += 1


class Misplaced(Broken):
    """A token that was lost or came twice."""


def _at_a_tie(answer: Answer, undisturbed: Answer) -> bool:
    if len(answer.tokens) != len(undisturbed.tokens):
        return False
    place = first_difference(answer.tokens, undisturbed.tokens)
    return place is not None and undisturbed.margins[place] < _TIE


def read_stream(url: str, model: str, prompt: str, *, tokens: int = TOKENS) -> Answer:
    """Ask for a streamed answer and read it to its end.

    Raises:
        Misplaced: a token was lost or came twice.
        Broken: it was refused, ended with an error, or before its end.
        OSError, HTTPException: the connection broke.
    """
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True})
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT_S)
    began_s = time.monotonic()
    try:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise Broken(f"{answer.status} {answer.read()[:150]!r}")
        return _checked(answer, began_s)
    finally:
        connection.close()


def _checked(lines: http.client.HTTPResponse, began_s: float) -> Answer:
    told: list[dict[str, Any]] = []
    came_s: list[float] = []
    for line in lines:
        if line.startswith(b"data: [DONE]"):
            return Answer(
                tokens=tuple(one["token"] for one in told),
                margins=tuple(one["margin"] for one in told),
                came_s=tuple(came_s),
            )
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise Broken(event["error"]["message"])
        if "utopia" in event:
            if event["utopia"]["index"] != len(told):
                raise Misplaced(f"token {event['utopia']['index']} came where {len(told)} was due")
            told.append(event["utopia"])
            came_s.append(time.monotonic() - began_s)
    raise Broken("it ended without [DONE]")


def load(
    url: str,
    model: str,
    *,
    clients: int,
    seconds: float,
    watch: Callable[[Outcome], None] = lambda _outcome: None,
    watch_s: float = 1.0,
) -> Outcome:
    """Have so many clients ask again and again for so long; `watch` is called every `watch_s` meanwhile."""
    undisturbed = {prompt: read_stream(url, model, prompt) for prompt in PROMPTS}
    outcome, began_s = Outcome(), time.monotonic()
    end_s = began_s + seconds
    threads = [
        threading.Thread(target=_client, args=(url, model, first, undisturbed, outcome, end_s), daemon=True)
        for first in range(clients)
    ]
    for thread in threads:
        thread.start()
    due_s = time.monotonic() + watch_s
    for thread in threads:
        while thread.is_alive():
            thread.join(max(0.0, due_s - time.monotonic()))
            if time.monotonic() >= due_s:
                watch(outcome)
                due_s += watch_s
    outcome.seconds = time.monotonic() - began_s
    return outcome


def _client(
    url: str, model: str, first: int, undisturbed: dict[str, Answer], outcome: Outcome, end_s: float
) -> None:
    place = first
    while time.monotonic() < end_s:
        prompt = PROMPTS[place % len(PROMPTS)]
        place += 1
        try:
            outcome.take(read_stream(url, model, prompt), undisturbed[prompt])
        except (Broken, OSError, http.client.HTTPException, ValueError, KeyError) as error:
            outcome.fail(error)
            time.sleep(0.1)  # one that is refused at once must not ask a thousand times


def growth(samples: Sequence[float]) -> float | None:
    """Return by what ratio the median of the last third exceeds that of the middle one; None for too few.

    The first third is left out: threads, pools and caches come into being then.
    """
    third = len(samples) // 3
    if third < 2:
        return None
    middle, last = sorted(samples[third : 2 * third]), sorted(samples[-third:])
    return last[third // 2] / middle[third // 2]
