"""Text to tokens and back, at once and one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.models.embedded import END_TOKEN, tokenizer_json
from workers.models.errors import BrokenModel
from workers.models.tokenizer import TextStream, Tokenizer

TOKENIZER = Tokenizer(tokenizer_json())
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@given(st.text(max_size=60))
def test_a_token_of_the_built_in_model_is_a_byte(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert tokens == list(text.encode())
    assert TOKENIZER.decode(tokens) == text


def test_special_tokens_have_no_text() -> None:
    assert TOKENIZER.decode([104, 105, END_TOKEN]) == "hi"
    assert TOKENIZER.vocabulary_size == 258


@given(st.text(max_size=60))
def test_streamed_pieces_are_the_text_and_never_break_a_character(text: str) -> None:
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(token) for token in text.encode()]
    assert all(REPLACEMENT not in piece for piece in pieces if REPLACEMENT not in text)
    assert "".join(pieces) + stream.flush() == text


@settings(deadline=None)
@given(st.lists(st.integers(0, 257), max_size=60))
def test_any_tokens_can_be_streamed(tokens: list[int]) -> None:
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(token) for token in tokens]
    text = "".join(pieces) + stream.flush()
    assert text.replace(REPLACEMENT, "") == TOKENIZER.decode(tokens).replace(REPLACEMENT, "")


def test_text_that_is_no_utf8_is_not_held_back_for_ever() -> None:
    stream = TextStream(TOKENIZER)
    assert any(stream.push(0xBF) for _ in range(40))


@pytest.mark.parametrize("content", ["", "{}", "null", '{"model": 3}'])
def test_what_is_no_tokenizer_is_refused(content: str) -> None:
    with pytest.raises(BrokenModel, match=r"tokenizer\.json"):
        Tokenizer(content)
