"""Tokens are chosen by the scores, the settings and the place in the answer, and by nothing else."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.errors import RequestRefused
from workers.inference.sampling import GREEDY, Sampling, choose

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.5])
SHARES = torch.softmax(LOGITS, dim=-1).tolist()


def draws(sampling: Sampling, count: int = 4000) -> Counter[int]:
    """Draw the first, second, ... token of one answer whose scores never change."""
    return Counter(choose(LOGITS, sampling, [0] * made, prompt_tokens=0).token for made in range(count))


def test_without_a_temperature_the_best_token_is_chosen() -> None:
    choice = choose(LOGITS, GREEDY, [4, 4], prompt_tokens=2)
    assert (choice.token, choice.margin) == (1, 1.0)
    assert choice.log_probability is None


def test_tokens_are_drawn_as_likely_as_the_model_says() -> None:
    counts = draws(Sampling(temperature=1.0, seed=5))
    for token, share in enumerate(SHARES):
        spread = math.sqrt(share * (1 - share) / 4000)
        assert abs(counts[token] / 4000 - share) < 4 * spread


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    cold, hot = draws(Sampling(temperature=0.3, seed=1)), draws(Sampling(temperature=2.0, seed=1))
    assert cold[1] > 3800
    assert hot[1] < 2400


def test_the_same_seed_draws_the_same_and_another_one_does_not() -> None:
    def answer(seed: int) -> list[int]:
        return [
            choose(LOGITS, Sampling(temperature=1.0, seed=seed), [0] * made, prompt_tokens=0).token
            for made in range(50)
        ]

    assert answer(7) == answer(7)
    assert answer(7) != answer(8)


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(temperature=2.0, top_k=2), {1, 2}),
        (Sampling(temperature=2.0, top_k=1), {1}),
        (Sampling(temperature=1.0, top_p=0.6), {1}),
        (Sampling(temperature=1.0, top_p=0.85), {1, 2}),
        (Sampling(temperature=1.0, top_p=0.0), {1}),
        (Sampling(temperature=2.0, top_k=99), {0, 1, 2, 3, 4}),
    ],
)
def test_only_the_likeliest_are_left(sampling: Sampling, left: set[int]) -> None:
    assert set(draws(sampling, 600)) == left


def test_what_was_there_before_counts_less() -> None:
    again = Sampling(repetition_penalty=2.0)
    assert choose(LOGITS, again, [1], prompt_tokens=1).token == 2
    assert choose(LOGITS, Sampling(presence_penalty=2.0), [1], prompt_tokens=1).token == 1
    assert choose(LOGITS, Sampling(presence_penalty=2.0), [0, 1], prompt_tokens=1).token == 2
    often = Sampling(frequency_penalty=0.4)
    assert choose(LOGITS, often, [1, 1], prompt_tokens=0).token == 1
    assert choose(LOGITS, often, [1, 1, 1], prompt_tokens=0).token == 2


def test_a_repeated_token_with_a_negative_score_gets_a_lower_one() -> None:
    scores = torch.tensor([-1.0, -1.5])
    assert choose(scores, Sampling(repetition_penalty=2.0), [0], prompt_tokens=1).token == 1


def test_probabilities_are_those_of_the_model_whatever_is_left_out() -> None:
    sampling = Sampling(temperature=1.0, top_k=1, repetition_penalty=1.5, alternatives=2)
    choice = choose(LOGITS, sampling, [2], prompt_tokens=1)
    assert choice.log_probability == pytest.approx(math.log(SHARES[1]))
    assert [token for token, _ in choice.alternatives] == [1, 2]
    assert choice.alternatives[1][1] == pytest.approx(math.log(SHARES[2]))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_show_in_the_margin(broken: float) -> None:
    scores = torch.tensor([1.0, broken, broken, 0.0])
    choice = choose(scores, Sampling(temperature=1.0, alternatives=1), [0], prompt_tokens=1)
    assert not math.isfinite(choice.margin)


@pytest.mark.parametrize(
    "section",
    [
        {"temperature": 2.1},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"top_p": -0.1},
        {"top_k": -1},
        {"top_k": 1.5},
        {"seed": -1},
        {"seed": 1 << 63},
        {"alternatives": 21},
        {"repetition_penalty": 0},
        {"beams": 4},
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(section: dict[str, object]) -> None:
    with pytest.raises(RequestRefused, match=next(iter(section))):
        Sampling.parse(section)


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40),
    temperature=st.floats(0.01, 2.0),
    top_k=st.integers(0, 50),
    top_p=st.floats(0, 1),
    seed=st.integers(0, (1 << 63) - 1),
    made=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_whatever_the_settings_a_token_that_may_be_chosen_is(
    logits: list[float], temperature: float, top_k: int, top_p: float, seed: int, made: int
) -> None:
    scores = torch.tensor(logits)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    token = choose(scores, sampling, [0] * made, prompt_tokens=0).token
    better = int((scores > scores[token]).sum())
    assert better < (top_k or len(logits))
    assert math.isfinite(float(scores[token]))
