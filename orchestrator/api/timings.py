"""How long an answer took and where the time went, in the shape of llama.cpp's `timings`, with more: pure."""

from __future__ import annotations

from orchestrator.ports import Json

PARTS = ("compute", "queue", "wire")


class Timings:
    """Sums of what a head told of the tokens of one answer; the first is the prompt's."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._tokens = 0
        self._elapsed_s = {"prompt": 0.0, "predicted": 0.0}
        self._parts_s = {phase: dict.fromkeys(PARTS, 0.0) for phase in self._elapsed_s}
        self._nodes_s: dict[str, list[float]] = {}
        self._emulated = False
        self._whole = True

    def add(self, chunk: Json) -> None:
        """Take a token in."""
        phase = "predicted" if self._tokens else "prompt"
        self._tokens += 1
        self._elapsed_s[phase] += chunk["elapsed_s"]
        if "compute_s" not in chunk:
            self._whole = False
            return
        for part in PARTS:
            self._parts_s[phase][part] += chunk[f"{part}_s"]
        self._emulated = self._emulated or chunk["emulated"]
        for node, compute_s, queue_s in chunk["nodes"]:
            both = self._nodes_s.setdefault(node, [0.0, 0.0])
            both[0] += compute_s
            both[1] += queue_s

    def document(self) -> Json:
        """Return them; what is not known is null. Rates of the answer are those after its first token."""
        return {
            **self._pace("prompt", self._prompt_tokens, self._prompt_tokens if self._tokens else 0),
            **self._pace("predicted", self._tokens, self._tokens - 1),
            "utopia": self._split() if self._whole and self._tokens else None,
        }

    def _pace(self, phase: str, tokens: int, timed: int) -> Json:
        ms = 1e3 * self._elapsed_s[phase]
        known = timed > 0 and ms > 0
        return {
            f"{phase}_n": tokens,
            f"{phase}_ms": ms,
            f"{phase}_per_token_ms": ms / timed if known else None,
            f"{phase}_per_second": 1e3 * timed / ms if known else None,
        }

    def _split(self) -> Json:
        return {
            "emulated": self._emulated,
            **{
                phase: {f"{part}_ms": 1e3 * seconds for part, seconds in parts.items()}
                for phase, parts in self._parts_s.items()
            },
            "nodes": [
                {"node": node, "compute_ms": 1e3 * compute_s, "queue_ms": 1e3 * queue_s}
                for node, (compute_s, queue_s) in self._nodes_s.items()
            ],
        }
