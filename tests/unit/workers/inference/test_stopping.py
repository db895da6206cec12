"""An answer ends before a stop text, however its pieces are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.inference.stopping import StopTexts


def given_out(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """Push pieces until a stop text appears; return the text given out and whether it did."""
    texts, out = StopTexts(stops), ""
    for piece in pieces:
        text, stopped = texts.push(piece)
        out += text
        if stopped:
            return out, True
    return out + texts.flush(), False


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["one", " two"], [], ("one two", False)),
        (["one\n\ntwo"], ["\n\n"], ("one", True)),
        (["one\n", "\ntwo"], ["\n\n"], ("one", True)),
        (["one\n", "two"], ["\n\n"], ("one\ntwo", False)),
        (["aab"], ["ab"], ("a", True)),
        (["a", "a", "b"], ["aab"], ("", True)),
        (["x EN", "D y"], ["END", "y"], ("x ", True)),
        (["one", " two"], ["three", " two"], ("one", True)),
    ],
)
def test_the_text_ends_before_the_first_stop(
    pieces: list[str], stops: list[str], expected: tuple[str, bool]
) -> None:
    assert given_out(pieces, stops) == expected


def test_what_cannot_become_a_stop_is_given_at_once() -> None:
    texts = StopTexts(["<end>"])
    assert texts.push("a <") == ("a ", False)
    assert texts.push("b") == ("<b", False)


@given(
    text=st.text(alphabet="ab", max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=10),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_how_the_text_is_cut_makes_no_difference_to_whether_it_ends(
    text: str, cuts: list[int], stops: list[str]
) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    out, stopped = given_out(pieces, stops)
    assert stopped == any(stop in text for stop in stops)
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)
    if not stopped:
        assert out == text
