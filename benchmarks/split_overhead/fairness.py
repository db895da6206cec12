"""The part `fairness`: how long a running stream has to wait while prompts enter its ring.

Between two tokens of a stream each stage may have just begun a piece of a prompt, which goes to its end, and
then runs the stream's row: at best the longest gap is the time of one piece through all layers and that of
a token, where each stage has a core of its own. How far it is beyond that is what is measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.split_overhead import model
from benchmarks.split_overhead.nodes import Workers
from workers.inference.head import CHUNK_ROWS

PART = "fairness"
MANY = 8
_UNDISTURBED_TOKENS = 32


def prompt_of(count: int, vocabulary: int, *, number: int = 0) -> list[int]:
    """Return a prompt of `count` tokens, another for each number."""
    return [(11 + 7 * place + 101 * number) % vocabulary for place in range(count)]


def measure(workers: Workers, name: str, *, context: int, vocabulary: int, tokens: int) -> dict[str, Any]:
    """Time one token and one prompt of `tokens` tokens alone in the ring called `name`."""
    stream = workers.generate(name, tokens=_UNDISTURBED_TOKENS)[0]
    prompt = prompt_of(tokens, vocabulary)
    alone_s = workers.generate(name, tokens=1, prompt=prompt)[0][0]["elapsed_s"]
    return {
        "token_s": statistics.median(told["elapsed_s"] for told in stream[1:]),
        "first_token_alone_s": alone_s,
        "context": context,
        "vocabulary": vocabulary,
        "prompt_tokens": tokens,
    }


def disturbed(
    workers: Workers, name: str, alone: Mapping[str, Any], *, piece_s: float, prompts: int
) -> dict[str, Any]:
    """Have `prompts` prompts enter at once while a stream runs; returns a row of what both saw.

    `piece_s` is what one worker takes for a piece, on average over the prompt.
    """
    most = alone["context"] - len(model.PROMPT)
    stream = workers.begin(name, tokens=most, prompt=model.PROMPT)
    running, firsts = {stream}, dict[str, float]()
    waiting: set[str] = set()
    gaps: list[float] = []
    for request, told in workers.hear(running):
        if request != stream:
            firsts[request] = told["elapsed_s"]
            waiting.discard(request)
            if not waiting:
                workers.cancel(name, stream)
        elif told["index"] == _UNDISTURBED_TOKENS:
            waiting = {
                workers.begin(
                    name,
                    tokens=1,
                    prompt=prompt_of(alone["prompt_tokens"], alone["vocabulary"], number=number),
                )
                for number in range(prompts)
            }
            running |= waiting
        elif waiting:
            gaps.append(told["elapsed_s"])
    least_s = piece_s + alone["token_s"]
    return {
        "arm": "a prompt" if prompts == 1 else f"{prompts} prompts",
        "prompts": prompts,
        "prompt_tokens": alone["prompt_tokens"],
        "pieces": math.ceil(alone["prompt_tokens"] / CHUNK_ROWS),
        "piece_s": piece_s,
        "token_s": alone["token_s"],
        "least_gap_s": least_s,
        "gap_s_most": max(gaps),
        "gap_s_p95": _p95(gaps),
        "gap_most_over_piece": max(gaps) / piece_s,
        "gap_p95_over_piece": _p95(gaps) / piece_s,
        "stream_tokens_meanwhile": len(gaps),
        "first_token_alone_s": alone["first_token_alone_s"],
        "first_token_s_median": statistics.median(firsts.values()),
        "first_token_s_most": max(firsts.values()),
    }


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
