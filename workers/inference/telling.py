"""Telling the orchestrator of a head's tokens: a few together, once what follows from them has gone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from workers.inference import timing
from workers.inference.generation import Generation
from workers.inference.sampling import Choice
from workers.inference.stage import Stage

TELL_INTERVAL_S = 0.01
"""Tokens that come faster than this are told together; the first one of an answer is told at once."""

Notify = Callable[[str, dict[str, Any]], None]


class _Untold(NamedTuple):
    generation: Generation
    stage: Stage
    choice: Choice
    index: int
    text: str | None
    """None: to be made of the token."""
    elapsed_s: float
    replayed: int
    head_compute_s: float
    passes: list[timing.Pass]
    round_s: float
    spent_ns: list[int]


class Telling:
    """What a head `node` has to tell of its deployment; `paced`: its computing is emulated.

    Used by whoever has the compute thread's turn; `notify` never waits.
    """

    def __init__(
        self, deployment: str, *, node: str, paced: bool, notify: Notify, clock: Callable[[], float]
    ) -> None:
        self._deployment = deployment
        self._node = node
        self._paced = paced
        self._notify = notify
        self._clock = clock
        self._untold: list[_Untold] = []
        self._first_untold = False
        self._told_s = -math.inf

    def note(self, generation: Generation, stage: Stage, choice: Choice, *, text: str | None) -> None:
        """Have a token told once the rows that follow from it and from its like are on their way.

        `text`: what it adds to the answer; None: what the generation's text makes of it, by then.
        """
        now_s, spent, index = self._clock(), generation.spent, generation.made - 1
        self._first_untold = self._first_untold or index == 0
        self._untold.append(
            _Untold(
                generation, stage, choice, index, text, now_s - generation.last_token_s, generation.replayed,
                spent.head_compute_s, spent.passes, spent.round_s, spent.spent_ns,
            )
        )  # fmt: skip
        spent.begin()
        generation.last_token_s, generation.replayed = now_s, 0

    def make_texts(self) -> None:
        """Make the texts of all tokens that were noted without."""
        self._untold = [
            untold._replace(text=untold.generation.text.push(untold.choice.token))
            if untold.text is None
            else untold
            for untold in self._untold
        ]

    def is_due(self) -> bool:
        """Tell whether there is something that should not wait any longer."""
        return bool(self._untold) and (self._first_untold or self._clock() - self._told_s >= TELL_INTERVAL_S)

    def due_s(self) -> float | None:
        """Return when what is there has to be told at the latest; None if nothing is."""
        return self._told_s + TELL_INTERVAL_S if self._untold else None

    def tell(self) -> None:
        """Tell of all tokens there are."""
        if self._untold:
            self.make_texts()
            tokens, self._untold = [self._whole(untold) for untold in self._untold], []
            self._first_untold = False
            self._told_s = self._clock()
            self._notify("tokens", {"deployment": self._deployment, "tokens": tokens})

    def tell_of(self, kind: str, generation: Generation, **fields: Any) -> None:
        """Tell something else of a request."""
        self._notify(kind, {"deployment": self._deployment, "request": generation.request, **fields})

    def _whole(self, untold: _Untold) -> dict[str, Any]:
        passes = untold.passes
        if untold.spent_ns:
            way = timing.way_of_row(untold.stage.ring, untold.spent_ns)
            passes = [*passes, timing.Pass(untold.round_s, way)]
        split = timing.told(
            elapsed_s=untold.elapsed_s,
            head=self._node,
            head_compute_s=untold.head_compute_s,
            paced=self._paced,
            passes=passes,
        )
        return {
            "request": untold.generation.request,
            "index": untold.index,
            "token": untold.choice.token,
            "text": untold.text,
            "epoch": untold.stage.epoch,
            "elapsed_s": untold.elapsed_s,
            "replayed": untold.replayed,
            "margin": untold.choice.margin,
            **_probabilities(untold.stage, untold.choice),
            **split,
        }


def _probabilities(stage: Stage, choice: Choice) -> dict[str, Any]:
    """Return how likely the chosen token was, and the likeliest ones, each with its text."""
    if choice.log_probability is None:
        return {}
    assert stage.tokenizer is not None
    text = stage.tokenizer.token_text
    likely = [[token, text(token), value] for token, value in choice.alternatives]
    return {"logprob": choice.log_probability, "token_text": text(choice.token), "top_logprobs": likely}
