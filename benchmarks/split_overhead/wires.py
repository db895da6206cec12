"""What sending rows in fewer bits saves and costs: bytes on the wire, error of the rows, tokens that change.

Bytes are those of whole frames between hosts in one process, without TLS and TCP (about 100 more for each
frame). Errors are of random texts that go through the model in as many parts, each part's rows sent on as the
product sends them; the parameters are random, so that the best logits lie closer together than a trained
model's, and more tokens change.

Shape letters: B texts, T tokens of each, H hidden, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.split_overhead import model, rings
from workers.inference import activations
from workers.models.chain import Chain
from workers.models.config import parse_config
from workers.models.model_config import parameter_shapes
from workers.models.split import build

STAGES = 3
_TEXTS = 8
_ANSWER_TIMEOUT_S = 120.0


def rows(
    document: Mapping[str, Any], parameters: Mapping[str, Tensor], *, tokens: int, seed: int
) -> list[dict[str, Any]]:
    """Return one row for each precision of the wire."""
    config = parse_config(document)
    cuts = [config.layers * stage // STAGES for stage in range(STAGES + 1)]
    ranges = list(itertools.pairwise(cuts))
    parts = [_part(document, parameters, first, end) for first, end in ranges]
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randint(config.vocabulary_size, (_TEXTS, tokens), generator=generator)
    exact, _ = _through(parts, texts, "fp32")
    found = []
    for wire in activations.WIRE:
        logits, errors = _through(parts, texts, wire)
        found.append(
            {
                "part": "wire",
                "arm": wire,
                "stages": STAGES,
                "bytes_per_hop": _bytes_per_hop(document, parameters, ranges, wire, tokens=tokens),
                "row_rms_error": max(errors),
                "logits_rms_error": _relative_rms(logits, exact),
                "tokens_compared": texts.numel(),
                "same_tokens_ratio": float((logits.argmax(-1) == exact.argmax(-1)).float().mean()),
            }
        )
    return found


def note(found: Sequence[Mapping[str, Any]]) -> str | None:
    """Say in one line what the precisions cost; None if that was not measured."""
    told = [
        f"{row['arm']} {row['bytes_per_hop']:.0f} bytes per token and hop, error of rows "
        f"{row['row_rms_error']:.1e}, of logits {row['logits_rms_error']:.1e}, "
        f"{100 * row['same_tokens_ratio']:.1f} % of {row['tokens_compared']} tokens the same"
        for row in found
        if row["part"] == "wire"
    ]
    return f"wire, {STAGES} stages: {'; '.join(told)}" if told else None


def _part(document: Mapping[str, Any], parameters: Mapping[str, Tensor], first: int, end: int) -> Chain:
    """Return a part of the model; the first one has the head."""
    config, head = parse_config(document), first == 0
    shapes = parameter_shapes(config, first_layer=first, end_layer=end, head=head)
    own = {name: parameters[name] for name in shapes}
    return build(config, own, first_layer=first, end_layer=end, head=head)


@torch.inference_mode()
def _through(parts: Sequence[Chain], texts: Tensor, wire: str) -> tuple[Tensor, list[float]]:
    """Return the logits [B, T, V] of texts [B, T], and the relative error of each hop's rows."""
    x, errors = parts[0].embed(texts), []
    for part in parts:
        x = part.run_layers(x)
        sent = activations.packed(x.flatten(0, 1).numpy(), wire)
        arrived = torch.from_numpy(activations.unpacked(sent, wire, x.shape[-1]).copy()).view_as(x)
        errors.append(_relative_rms(arrived, x))
        x = arrived
    return parts[0].logits(x), errors


def _relative_rms(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _bytes_per_hop(
    document: Mapping[str, Any],
    parameters: Mapping[str, Tensor],
    ranges: Sequence[tuple[int, int]],
    wire: str,
    *,
    tokens: int,
) -> float:
    """Return the bytes that one token of one request sends from host to host."""
    placement = [(f"n{stage}", first, end) for stage, (first, end) in enumerate(ranges)]
    names = [node for node, _, _ in placement]
    device = rings.profile(memory_bytes=4 << 30)
    tokenizer = model.tokenizer_json(dict(document))
    ring = rings.HostRing(names, document, parameters, tokenizer, device=device, wire=wire)
    try:
        ring.deploy(placement, ring_nodes=len(placement), context_tokens=tokens + len(model.PROMPT))
        asked = {"request": "r", "tokens": list(model.PROMPT), "max_tokens": tokens}
        ring.ask(names[0], "generate", deployment=rings.DEPLOYMENT, **asked)
        ring.await_done("r", timeout_s=_ANSWER_TIMEOUT_S)
        sent = sum(channel.sent_bytes.get("activations", 0) for channel in ring.channels)
    finally:
        ring.close()
    return sent / (tokens - 1) / len(placement)
