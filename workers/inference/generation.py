"""A request that is being answered, as its head keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workers import fields
from workers.errors import RequestRefused
from workers.inference.sampling import GREEDY, Sampling
from workers.inference.stage import Stage
from workers.inference.stopping import LONGEST_STOP, MOST_STOPS, StopTexts
from workers.inference.timing import Pass, Way
from workers.models.tokenizer import TextStream

_LONGEST_PROMPT = 8 << 20


@dataclass(slots=True)
class SinceToken:
    """What is known of where the time went since a generation's last token."""

    head_compute_s: float = 0.0
    passes: list[Pass] = field(default_factory=list)
    """Of the pieces that have passed."""
    pieces_sent_s: dict[int, float] = field(default_factory=dict)
    """When those under way left the head, by their pass."""
    row_sent_s: float = 0.0
    round_s: float = 0.0
    spent_ns: list[int] = field(default_factory=list)
    """Of its single row: what the nodes told, waiting and computing in turn."""

    def begin(self) -> None:
        """Begin to count for the next token."""
        self.head_compute_s = 0.0
        self.passes, self.spent_ns = [], []
        self.pieces_sent_s.clear()

    def passed(self, sequence: int, came_s: float, way: Way) -> None:
        """Take in that a piece is back."""
        sent_s = self.pieces_sent_s.pop(sequence, None)
        if sent_s is not None:
            self.passes.append(Pass(came_s - sent_s, way))


@dataclass(slots=True, kw_only=True)
class Generation:
    """One request that is being answered."""

    request: str
    number: int = 0
    """What the ring knows the request by; given by the head, another one when it was put back."""
    age: int = 0
    """Its place in the order of arrival."""
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
    entering: bool = False
    """Pieces of its tokens have gone into the ring, and more are to follow."""
    replayed: int = 0
    due_s: float | None = None
    """When the pass under way is overdue; None if none is, or it was told already."""
    in_flight: bool = False
    scheduled: bool = False
    """Waits for its turn to send a row or a piece."""
    put_back: bool = False
    """It waits until there may be room for its caches."""
    ended: bool = False
    spent: SinceToken = field(default_factory=SinceToken)

    @classmethod
    def parse(cls, message: Mapping[str, Any], stage: Stage, *, now_s: float) -> Generation:
        """Check the fields of `generate` for the committed stage of a head.

        Raises:
            RequestRefused: a field is wrong, or the deployment's context has no place for it.
        """
        assert stage.tokenizer is not None
        tokens = _prompt(message, stage)
        return cls(
            request=fields.text(message, "request"),
            tokens=tokens,
            prompt_tokens=len(tokens),
            max_tokens=_max_tokens(message, stage, len(tokens)),
            text=TextStream(stage.tokenizer),
            last_token_s=now_s,
            sampling=Sampling.parse(fields.section(message, "sampling") if "sampling" in message else {}),
            stops=StopTexts(_stops(message)),
        )

    @property
    def missing(self) -> int:
        """Tokens whose rows have not gone into the ring."""
        return len(self.tokens) - self.cached

    @property
    def made(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def can_go(self) -> bool:
        """Tell whether something of it may be sent now."""
        return not (self.ended or self.in_flight or self.put_back)

    def text_after(self, token: int, *, last: bool) -> tuple[str, bool]:
        """Take a token; return what it adds to the answer, and whether that ends with a stop text.

        After the `last` token nothing is held back.
        """
        text, stopped = self.stops.push(self.text.push(token))
        if last and not stopped:
            rest, stopped = self.stops.push(self.text.flush())
            text += rest if stopped else rest + self.stops.flush()
        return text, stopped

    def goes_as_prompt(self, stage: Stage) -> bool:
        """Tell whether what the ring of `stage` lacks of its tokens goes there in pieces now."""
        if not self.can_go:
            return False
        return self.stage is not stage or self.entering or self.missing > 1


def _prompt(message: Mapping[str, Any], stage: Stage) -> list[int]:
    tokens = message.get("tokens")
    if tokens is None:
        assert stage.tokenizer is not None
        prompt = fields.text(message, "prompt", longest=_LONGEST_PROMPT)
        tokens = stage.tokenizer.encode(prompt, bare=message.get("bare") is True)
    vocabulary = stage.assignment.config.vocabulary_size
    if not isinstance(tokens, list) or not tokens:
        raise RequestRefused("bad-field", "the prompt has no tokens")
    if not all(type(token) is int and 0 <= token < vocabulary for token in tokens):
        raise RequestRefused("bad-field", f"the prompt's tokens must be whole numbers below {vocabulary}")
    return list(tokens)


def _max_tokens(message: Mapping[str, Any], stage: Stage, prompt_tokens: int) -> int:
    context_tokens = stage.assignment.context_tokens
    wanted = {"max_tokens": max(1, context_tokens - prompt_tokens), **message}
    max_tokens = fields.integer(wanted, "max_tokens", least=1)
    if prompt_tokens + max_tokens > context_tokens:
        raise RequestRefused(
            "context-exceeded",
            f"a prompt of {prompt_tokens} tokens and {max_tokens} new ones exceed the deployment's context "
            f"of {context_tokens}; shorten the prompt or ask for fewer tokens",
        )
    return max_tokens


def _stops(message: Mapping[str, Any]) -> list[str]:
    stops = message.get("stop", [])
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise RequestRefused("bad-field", f"stop must be a list of at most {MOST_STOPS} texts")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= LONGEST_STOP:
            raise RequestRefused("bad-field", f"a stop text must have 1 to {LONGEST_STOP} characters")
    return stops
