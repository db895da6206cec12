"""However a model of any family is cut, its answers are those of the whole one and of transformers."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.split_overhead import correct, figures
from benchmarks.split_overhead.correct import HEADS, LAYERS, LONGEST_PROMPT, MOST_REQUESTS, VOCABULARY, Case
from workers.inference import stage

pytest.importorskip("transformers")
torch.set_num_threads(1)

PROMPTS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=LONGEST_PROMPT).map(tuple)
REQUESTS = st.lists(st.tuples(PROMPTS, st.integers(1, 8)), min_size=1, max_size=MOST_REQUESTS).map(tuple)
CUTS = st.sets(st.integers(1, LAYERS - 1), min_size=1).map(lambda cuts: tuple(sorted(cuts)))
PARTS = st.fixed_dictionaries({"cuts": CUTS, "head": st.sampled_from(HEADS), "requests": REQUESTS})
FEW = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def check(case: Case) -> None:
    outcome = correct.check(case)
    assert outcome.differences == ()
    if outcome.ties:
        warnings.warn(f"{case.family}: {outcome.ties} ties in {outcome.tokens} tokens", stacklevel=1)


@pytest.mark.parametrize("family", correct.FAMILIES)
@FEW
@given(parts=PARTS)
def test_any_cut_of_any_family_says_what_the_whole_model_and_transformers_say(family, parts):
    check(Case(family=family, seed=0, **parts))


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
@settings(parent=FEW, max_examples=6)
@given(parts=PARTS)
def test_any_cut_does_without_the_compiled_kernels(family, parts, monkeypatch):
    monkeypatch.setattr(stage, "decoder_of", lambda model: None)
    check(Case(family=family, seed=0, **parts))


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
@pytest.mark.parametrize("family", correct.FAMILIES)
@settings(parent=FEW, max_examples=4)
@given(parts=PARTS)
def test_parameters_of_16_bits_say_what_transformers_says_with_the_same_ones(family, compute, parts):
    check(Case(family=family, seed=0, compute=compute, **parts))


CASE = Case(family="llama", seed=0, cuts=(2,), head="first layers", requests=(((1, 2, 3), 6), ((9,), 6)))


def reference_with(told, margin):
    """Return a reference whose third token differs from what was told, and was better by `margin`."""

    def reference(*asked):
        found = told(*asked)
        tokens = [*found.tokens[:2], (found.tokens[2] + 1) % VOCABULARY, *found.tokens[3:]]
        return correct._Told(tokens, [1.0, 1.0, margin, 1.0, 1.0, 1.0])

    return reference


@pytest.mark.parametrize(("margin", "ties", "differences"), [(0.5e-4, 2, 0), (2e-4, 0, 2)])
def test_a_difference_is_allowed_at_a_tie_only_and_counted(monkeypatch, margin, ties, differences):
    monkeypatch.setattr(correct, "_huggingface", reference_with(correct._huggingface, margin))
    outcome = correct.check(CASE)
    assert (outcome.ties, len(outcome.differences)) == (ties, differences)
    assert outcome.tokens == 2 * 6 + 2 * 2  # what follows a difference is not compared


def test_cases_and_their_ties_are_summed_up():
    row = {"part": "correct", "arm": "llama", "tokens": 20, "ties": 1, "differences": []}
    assert figures.ties([row, {**row, "differences": ["one"]}]) == (
        "correct: 2 cases, 40 tokens compared, 1 differences, 2 ties"
    )
    assert figures.ties([]) is None
