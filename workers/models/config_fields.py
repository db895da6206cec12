"""Read the entries of a `config.json` with their types and ranges checked. No torch.

Everything is checked here, so that no later step allocates by a number nobody looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from workers.models.errors import BrokenModel

_MOST_TOKENS = 16_777_216
_LIMITS = {
    "vocab_size": 1_000_000,
    "hidden_size": 65_536,
    "n_embd": 65_536,
    "intermediate_size": 1_000_000,
    "n_inner": 1_000_000,
    "num_hidden_layers": 1_024,
    "n_layer": 1_024,
    "num_attention_heads": 1_024,
    "n_head": 1_024,
    "num_key_value_heads": 1_024,
    "head_dim": 4_096,
}


def end_tokens(document: Mapping[str, object], vocabulary_size: int) -> frozenset[int]:
    """Return `eos_token_id`: one token, several or none."""
    value = document.get("eos_token_id")
    tokens = [] if value is None else value if isinstance(value, list) else [value]
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary_size:
            raise BrokenModel(
                f"config: eos_token_id {token!r} is no token of a vocabulary of {vocabulary_size}"
            )
    return frozenset(tokens)


def integer(document: Mapping[str, object], key: str, *, default: int | None = None) -> int:
    """Return a whole number from 1 to the limit of its kind; raises BrokenModel."""
    value = document.get(key)
    if value is None:
        value = default
    limit = _LIMITS.get(key, _MOST_TOKENS)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise BrokenModel(f"config: {key} is {value!r}; must be a whole number from 1 to {limit}")
    return value


def number(document: Mapping[str, object], key: str, *, default: float | None = None) -> float:
    """Return a finite number above 0; raises BrokenModel."""
    value = document.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BrokenModel(f"config: {key} is {value!r}; must be a number above 0")
    return float(value)


def boolean(document: Mapping[str, object], key: str, *, default: bool) -> bool:
    """Return true or false; raises BrokenModel."""
    value = document.get(key, default)
    if not isinstance(value, bool):
        raise BrokenModel(f"config: {key} is {value!r}; must be true or false")
    return value
