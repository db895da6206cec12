"""Text to tokens and back, by the model folder's `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from workers.models.errors import BrokenModel
from workers.models.loader import read_tokenizer_json

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_HOLD = 16
"""Tokens held back at most for an unfinished character; only text that is no UTF-8 ever reaches it."""


class Tokenizer:
    """A Hugging Face fast tokenizer."""

    def __init__(self, tokenizer_json: str) -> None:
        """Read the content of a `tokenizer.json`; raises BrokenModel if it is none."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises no narrower one
            raise BrokenModel(f"tokenizer.json: cannot be read: {error}") from error

    @classmethod
    def of_folder(cls, folder: Path | str) -> Tokenizer:
        """Read the tokenizer of a model folder."""
        return cls(read_tokenizer_json(folder))

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, bare: bool = False) -> list[int]:
        """Return the tokens of a text, with what the model wants before it (a begin token, if any).

        A `bare` text has that in it already.
        """
        return self._tokenizer.encode(text, add_special_tokens=not bare).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def token_text(self, token: int) -> str:
        """Return the text of one token by itself, special ones included."""
        return self._tokenizer.decode([token], skip_special_tokens=False)


class TextStream:
    """Turn tokens that arrive one by one into text that never breaks a character.

    The pieces together are the text of all the tokens. A token that ends within a character gives an empty
    piece; the character comes with the token that completes it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # decoding starts here: decoders treat the first token of a text differently
        self._given = 0  # tokens whose text has been given out

    def push(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        self._tokens.append(token)
        piece = self._pending()
        held = len(self._tokens) - self._given
        if not piece or (piece.endswith(_REPLACEMENT) and held < _LONGEST_HOLD):
            return ""
        self._start, self._given = self._given, len(self._tokens)
        return piece

    def flush(self) -> str:
        """Return what is held back, at the end of the text."""
        piece = self._pending()
        self._start = self._given = len(self._tokens)
        return piece

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._tokens[self._start : self._given])
        return self._tokenizer.decode(self._tokens[self._start :])[len(before) :]
