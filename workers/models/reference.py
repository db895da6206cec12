"""Generate with the whole model on one device: what the split model is compared with."""

from __future__ import annotations

from pathlib import Path

import torch

from workers.errors import ModelError
from workers.models.chain import Chain, greedy
from workers.models.kv_cache import KvCache
from workers.models.loader import load
from workers.models.tokenizer import Tokenizer


def generate(folder: Path | str, prompt: str, max_tokens: int) -> tuple[list[int], list[float]]:
    """Continue `prompt` greedily by up to `max_tokens` tokens, or to the model's end token.

    Returns the new tokens (an end token included) and for each the margin: the difference of the two best
    logits, in nats. Where it is near 0, rounding may pick the other.

    Raises:
        ModelError: the folder cannot be used, or prompt and answer exceed the model's context.
    """
    model = load(folder)
    return generate_tokens(model, Tokenizer.of_folder(folder).encode(prompt), max_tokens)


def generate_tokens(model: Chain, prompt: list[int], max_tokens: int) -> tuple[list[int], list[float]]:
    """Continue a prompt of tokens with a loaded model; see `generate`."""
    config = model.config
    if not prompt or len(prompt) + max_tokens > config.context_tokens:
        raise ModelError(
            f"a prompt of {len(prompt)} tokens and {max_tokens} new ones do not fit a context of "
            f"{config.context_tokens}; the prompt must not be empty, and the sum not above the context"
        )
    cache = KvCache(config, first_layer=0, end_layer=config.layers, limit_tokens=config.context_tokens)
    tokens: list[int] = []
    margins: list[float] = []
    rows = prompt
    with torch.inference_mode():
        while len(tokens) < max_tokens:
            positions = torch.arange(cache.tokens, cache.tokens + len(rows))[None]
            x = model.embed(torch.tensor([rows]), positions)
            hidden = model.run_layers(x, position=cache.tokens, cache=cache)
            token, margin = greedy(model.logits(hidden[0, -1]))
            tokens.append(token)
            margins.append(margin)
            if token in config.end_tokens:
                break
            rows = [token]
    return tokens, margins
