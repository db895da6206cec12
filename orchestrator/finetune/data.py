"""The job's data: held-out part and equal partitions, cut by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import InvalidRequest

_SEQUENCES_PER_BLOCK = 4
_EVALUATED_SEQUENCES = 256
"""Held-out sequences that an evaluation reads at most: enough for a loss to +-0.01 nats, and quick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Held-out tokens and each node's own."""

    held_out: NDArray[np.int32]
    partitions: dict[str, NDArray[Any]]


def split(
    tokens: NDArray[np.int32], *, nodes: Sequence[str], sequence: int, held_out_ratio: float, seed: int
) -> Split:
    """Cut `tokens` into blocks, shuffle them by `seed`, hold a share out and deal the rest out equally.

    Raises:
        InvalidRequest: too few tokens for a block held out and one for each node.
    """
    size = _SEQUENCES_PER_BLOCK * sequence + 1
    blocks = [tokens[start : start + size] for start in range(0, len(tokens) - size + 1, size)]
    held_out = max(1, round(held_out_ratio * len(blocks)))
    each = (len(blocks) - held_out) // len(nodes)
    if each < 1:
        raise InvalidRequest(
            f"{len(tokens)} tokens are {len(blocks)} blocks of {size}; {len(nodes)} nodes and the held-out "
            f"part need at least {len(nodes) + held_out}: raise data_bytes or lower training.sequence_length",
            field="data_bytes",
        )
    order = np.random.default_rng(seed).permutation(len(blocks))
    shuffled = [blocks[index] for index in order]
    evaluated = np.concatenate(shuffled[:held_out])[: _EVALUATED_SEQUENCES * sequence + 1]
    dealt = {
        node: narrow(np.concatenate(shuffled[held_out + i * each : held_out + (i + 1) * each]))
        for i, node in enumerate(nodes)
    }
    return Split(held_out=evaluated, partitions=dealt)


def narrow(tokens: NDArray[np.int32]) -> NDArray[Any]:
    """Use one byte per token where the vocabulary allows it: it is what crosses the network."""
    return tokens.astype(np.uint8) if int(tokens.max(initial=0)) < 256 else tokens
