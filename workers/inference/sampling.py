"""Choose the next token from a model's scores: pure.

Shape letter: V vocabulary. What is chosen depends on the scores, the tokens so far, the settings and the
place of the token in the answer, and on nothing else: a request that is replayed on other nodes goes on as
it would have, and a seed gives the same answer whatever the split (as far as rounding allows).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from workers import fields
from workers.errors import RequestRefused

_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_MOST = {"top_k": 1 << 31, "seed": (1 << 63) - 1, "alternatives": 20}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen; the default is greedy: the best one.

    `top_k` 0 and `top_p` 1 leave nothing out. `repetition_penalty` is that of CTRL (Keskar 2019, eq. 2) over
    prompt and answer; `presence_penalty` and `frequency_penalty` are OpenAI's, over the answer.
    `alternatives` is how many of the likeliest tokens are told beside each chosen one, None for no
    probabilities at all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    alternatives: int | None = None

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> Sampling:
        """Read the `sampling` of a request; what is missing has its default.

        Raises:
            RequestRefused: a value is not what it must be; the text names it.
        """
        values: dict[str, Any] = {}
        for name, value in section.items():
            if name in _RANGES:
                values[name] = fields.between(section, name, *_RANGES[name])
            elif name in _MOST:
                values[name] = fields.integer(section, name, most=_MOST[name])
            else:
                known = ", ".join(sorted((*_RANGES, *_MOST)))
                raise RequestRefused("bad-field", f"sampling has no {name!r} ({value!r}); it has {known}")
        return cls(**values)

    @property
    def penalises(self) -> bool:
        """Whether tokens that were there before count less (or more)."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


GREEDY = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A chosen token.

    `margin` is by how much the best score beats the second, after penalties: a tie of greedy decoding is seen
    by it; it is not finite when the scores are not. Log probabilities (nats) are those of the model itself:
    before penalties, temperature and what leaves tokens out.
    """

    token: int
    margin: float
    log_probability: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


def choose(logits: Tensor, sampling: Sampling, tokens: Sequence[int], *, prompt_tokens: int) -> Choice:
    """Choose what follows `tokens`, the first `prompt_tokens` of which were given, by logits [V]."""
    scores = _penalised(logits, sampling, tokens, prompt_tokens) if sampling.penalises else logits
    best = torch.topk(scores, 2)
    token, margin = int(best.indices[0]), float(best.values[0] - best.values[1])
    if sampling.temperature > 0 and math.isfinite(margin):
        token = _drawn(scores, sampling, len(tokens) - prompt_tokens)
    if sampling.alternatives is None or not math.isfinite(margin):
        return Choice(token=token, margin=margin)
    known = torch.log_softmax(logits.float(), dim=-1)
    likely = torch.topk(known, min(sampling.alternatives, len(known)))
    pairs = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
    return Choice(token=token, margin=margin, log_probability=float(known[token]), alternatives=tuple(pairs))


def _penalised(logits: Tensor, sampling: Sampling, tokens: Sequence[int], prompt_tokens: int) -> Tensor:
    scores = logits.clone()
    seen = torch.tensor(sorted(set(tokens)))
    values = scores[seen]
    scores[seen] = torch.where(
        values < 0, values * sampling.repetition_penalty, values / sampling.repetition_penalty
    )
    made, counts = torch.tensor(tokens[prompt_tokens:], dtype=torch.long).unique(return_counts=True)
    scores[made] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return scores


def _drawn(scores: Tensor, sampling: Sampling, index: int) -> int:
    """Draw a token by its probability among those that `top_k` and `top_p` leave.

    The likeliest come first, and of those as many as together have `top_p` (Holtzman 2020): at least one.
    """
    kept = min(sampling.top_k, len(scores)) if sampling.top_k else len(scores)
    top = torch.topk(scores.double() / sampling.temperature, kept)
    reached = torch.softmax(top.values, dim=-1).cumsum(dim=-1)
    nucleus = 1 + int((reached < sampling.top_p).sum()) if sampling.top_p < 1 else kept
    nucleus = min(nucleus, kept)
    aim = _uniform(sampling.seed, index) * float(reached[nucleus - 1])
    place = int(torch.searchsorted(reached[:nucleus], aim, right=True))
    return int(top.indices[min(place, nucleus - 1)])


def _uniform(seed: int, index: int) -> float:
    """Return the number in 0..1 that belongs to the `index`-th token of an answer with `seed`."""
    digest = blake2b(index.to_bytes(8, "little"), key=seed.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
