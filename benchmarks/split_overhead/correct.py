"""Whether a split model says, token for token, what the whole one and Hugging Face's `generate` say.

A case is a model of a family, a way to cut it into a ring, and requests that are answered at once. A
difference is allowed only where the two best logits of who is compared with are within 1e-4 of each other: a
tie, which rounding may decide either way. Ties are counted, not hidden; what follows one is not compared.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.split_overhead import figures, rings
from workers.models.chain import Chain
from workers.models.config import parse_config
from workers.models.embedded import tokenizer_json
from workers.models.model_config import parameter_shapes
from workers.models.precision import COMPUTE, dtype_of
from workers.models.reference import generate_tokens
from workers.models.split import build

TIE_MARGIN = 1e-4
LAYERS = 6
VOCABULARY = 258
LONGEST_PROMPT = 48
MOST_TOKENS = 16
MOST_REQUESTS = 32
HEADS = ("first layers", "no layers", "last layers")
"""What the head's node runs beside embedding and LM head."""
_ANSWER_TIMEOUT_S = 120.0
LLAMA: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500.0,
}
_GPT2: dict[str, object] = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": LLAMA,
    "llama untied": {**LLAMA, "tie_word_embeddings": False, "num_key_value_heads": 4},
    "llama 3": {**LLAMA, "rope_parameters": LLAMA3},
    "llama with biases": {**LLAMA, "attention_bias": True},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": 16},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 16},
    "gpt2": _GPT2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One ring and what it is asked; `cuts` are the first layers of its stages but the first."""

    family: str
    seed: int
    cuts: tuple[int, ...]
    head: str
    requests: tuple[tuple[tuple[int, ...], int], ...]
    """The prompt of each, and how many tokens are to follow."""
    compute: str = "fp32"
    """How the ring holds the parameters; who is compared with has them rounded so, and is fp32."""

    def placement(self) -> rings.Placement:
        """Return node, first and end layer, the head's node first."""
        edges = (0, *self.cuts, LAYERS)
        ranges = list(itertools.pairwise(edges))
        if self.head == "no layers":
            ranges = [(0, 0), *ranges]
        elif self.head == "last layers":
            ranges = [ranges[-1], *ranges[:-1]]
        return [(f"n{number}", *span) for number, span in enumerate(ranges)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one case went: tokens compared with both, ties where they went apart, and what differed."""

    tokens: int
    ties: int
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Told:
    """The tokens of one answer, and by how much each was the best."""

    tokens: Sequence[int]
    margins: Sequence[float]


def draw(chance: random.Random, family: str, compute: str = "fp32") -> Case:
    """Return a random case of a family."""
    stages = chance.randint(2, 6)
    count = chance.choice((1, 2, 4, 8, 16, MOST_REQUESTS))
    requests = tuple(
        (
            tuple(chance.randrange(VOCABULARY) for _ in range(chance.randint(1, LONGEST_PROMPT))),
            chance.randint(1, MOST_TOKENS),
        )
        for _ in range(count)
    )
    cuts = tuple(sorted(chance.sample(range(1, LAYERS), stages - 1)))
    return Case(
        family=family,
        seed=chance.randrange(4),
        cuts=cuts,
        head=chance.choice(HEADS),
        requests=requests,
        compute=compute,
    )


def check(case: Case) -> Outcome:
    """Have a ring answer all requests of a case at once and compare every answer."""
    split = _answers(case)
    tokens, ties, differences = 0, 0, []
    for number, (asked, told) in enumerate(zip(case.requests, split, strict=True)):
        references = {
            "the unsplit model": _unsplit(case.family, case.seed, case.compute, *asked),
            "Hugging Face": _huggingface(case.family, case.seed, case.compute, *asked),
        }
        for name, reference in references.items():
            place = figures.first_difference(told.tokens, reference.tokens)
            tokens += len(told.tokens) if place is None else place
            if place is None:
                continue
            if reference.margins[place] < TIE_MARGIN:
                ties += 1
                continue
            differences.append(
                f"{case}: request {number}, token {place}: {told.tokens[place]}, {name} has "
                f"{reference.tokens[place]} with a margin of {reference.margins[place]:g}"
            )
    return Outcome(tokens=tokens, ties=ties, differences=tuple(differences))


def rows(seed: int, cases: int) -> list[dict[str, Any]]:
    """Check `cases` random cases of every family, in each precision in turn; a row for each."""
    chance = random.Random(seed)
    found = []
    for number in range(cases):
        for family in FAMILIES:
            case = draw(chance, family, COMPUTE[number % len(COMPUTE)])
            outcome = check(case)
            found.append(
                {
                    "part": "correct",
                    "arm": family,
                    "case": number,
                    "stages": len(case.cuts) + 1,
                    "cuts": list(case.cuts),
                    "head": case.head,
                    "compute": case.compute,
                    "requests": len(case.requests),
                    "tokens": outcome.tokens,
                    "ties": outcome.ties,
                    "differences": list(outcome.differences),
                }
            )
    return found


def _answers(case: Case) -> list[_Told]:
    """Return what a ring answers, all requests at once."""
    placement = case.placement()
    ring = rings.HostRing(
        [node for node, _, _ in placement],
        FAMILIES[case.family],
        _parameters(case.family, case.seed, case.compute),
        tokenizer_json(),
        compute=case.compute,
    )
    try:
        ring.deploy(placement, ring_nodes=len(placement))
        head = placement[0][0]
        for number, (prompt, count) in enumerate(case.requests):
            fields = {"request": f"r{number}", "tokens": list(prompt), "max_tokens": count}
            ring.ask(head, "generate", deployment=rings.DEPLOYMENT, **fields)
        for number in range(len(case.requests)):
            done = ring.await_done(f"r{number}", timeout_s=_ANSWER_TIMEOUT_S)
            if done["finish_reason"] != "length":
                raise RuntimeError(f"{case}: request {number} ended with {done}")
        told = [ring.tokens(f"r{number}") for number in range(len(case.requests))]
    finally:
        ring.close()
    return [
        _Told([entry["token"] for entry in entries], [entry["margin"] for entry in entries])
        for entries in told
    ]


@functools.cache
def _parameters(family: str, seed: int, compute: str) -> Mapping[str, Tensor]:
    """Return parameters so large that greedy tokens vary, rounded to what `compute` can hold."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 2 else 0.1)
        + (len(shape) == 1 and name.endswith("weight"))
        for name, shape in parameter_shapes(parse_config(FAMILIES[family])).items()
    }
    return {name: value.to(dtype_of(compute)).float() for name, value in drawn.items()}


@functools.cache
def _whole(family: str, seed: int, compute: str) -> Chain:
    return build(parse_config(FAMILIES[family]), _parameters(family, seed, compute))


@functools.cache
def _theirs(family: str, seed: int, compute: str) -> Any:
    """Return the same model in transformers."""
    import transformers

    values = {key: value for key, value in FAMILIES[family].items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(str(FAMILIES[family]["model_type"]), **values)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    parameters = dict(_parameters(family, seed, compute))
    missing, unexpected = model.load_state_dict(parameters, strict=False)
    if unexpected or set(missing) > {"lm_head.weight"}:
        raise RuntimeError(f"{family}: transformers lacks {missing} and does not know {unexpected}")
    model.tie_weights()
    return model


@functools.lru_cache(maxsize=1024)
def _unsplit(family: str, seed: int, compute: str, prompt: tuple[int, ...], count: int) -> _Told:
    return _Told(*generate_tokens(_whole(family, seed, compute), list(prompt), count))


@functools.lru_cache(maxsize=1024)
def _huggingface(family: str, seed: int, compute: str, prompt: tuple[int, ...], count: int) -> _Told:
    given = torch.tensor([prompt])
    with torch.inference_mode():
        made = _theirs(family, seed, compute).generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = [torch.topk(logits[0], 2).values for logits in made.logits]
    margins = [float(values[0] - values[1]) for values in best]
    return _Told(made.sequences[0, len(prompt) :].tolist(), margins)
