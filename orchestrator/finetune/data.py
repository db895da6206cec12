"""The job's data: a held-out part and a partition for each node, cut by a seed.

Blocks of a few sequences are shuffled; a share is held out and the rest dealt out: equally, in proportion to
the nodes' compute (`capacity`), or unlike one another (`dirichlet`: for each content class, the nodes' shares
of its blocks are drawn from a Dirichlet distribution; Hsu et al. 2019). A text has no labels, so its blocks'
classes are found: k-means over the frequencies of their tokens (token number modulo 64).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from orchestrator.errors import InvalidRequest

_SEQUENCES_PER_BLOCK = 4
_EVALUATED_SEQUENCES = 256
"""Held-out sequences that an evaluation reads at most: enough for a loss to +-0.01 nats, and quick."""
_FEATURES = 64
_CLASSES = 8
_STATED_SEED = 20_190_913
"""Mixed into the seed of what is drawn for `dirichlet`, so that the shuffle's draws are not used twice."""

Block = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Held-out tokens and each node's own."""

    held_out: NDArray[np.int32]
    partitions: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealing:
    """How blocks are dealt: `kind` is `equal`, `capacity` or `dirichlet`; capacities by node."""

    kind: str = "equal"
    alpha: float = 0.3
    capacities: Mapping[str, float | None] | None = None


def split(
    tokens: NDArray[np.int32],
    *,
    nodes: Sequence[str],
    sequence: int,
    held_out_ratio: float,
    seed: int,
    dealing: Dealing | None = None,
) -> Split:
    """Cut `tokens` into blocks, shuffle them by `seed`, hold a share out and deal the rest out.

    Every node gets one block at least. What is held out does not depend on how the rest is dealt.

    Raises:
        InvalidRequest: too few tokens for a block held out and one for each node.
    """
    dealing = dealing or Dealing()
    size = _SEQUENCES_PER_BLOCK * sequence + 1
    blocks = [tokens[start : start + size] for start in range(0, len(tokens) - size + 1, size)]
    held_out = max(1, round(held_out_ratio * len(blocks)))
    if len(blocks) - held_out < len(nodes):
        raise InvalidRequest(
            f"{len(tokens)} tokens are {len(blocks)} blocks of {size}; {len(nodes)} nodes and the held-out "
            f"part need at least {len(nodes) + held_out}: raise data_bytes or lower training.sequence_length",
            field="data_bytes",
        )
    order = np.random.default_rng(seed).permutation(len(blocks))
    shuffled = [blocks[index] for index in order]
    evaluated = np.concatenate(shuffled[:held_out])[: _EVALUATED_SEQUENCES * sequence + 1]
    dealt = _deal(shuffled[held_out:], nodes, dealing, seed)
    partitions = {node: narrow(np.concatenate(part)) for node, part in zip(nodes, dealt, strict=True)}
    return Split(held_out=evaluated, partitions=partitions)


def narrow(tokens: NDArray[np.int32]) -> NDArray[Any]:
    """Use one byte per token where the vocabulary allows it: it is what crosses the network."""
    return tokens.astype(np.uint8) if int(tokens.max(initial=0)) < 256 else tokens


def content_classes(blocks: Sequence[Block], *, seed: int) -> NDArray[np.int64]:
    """Return the class of each block, by k-means over the frequencies of its tokens."""
    counts = np.stack([np.bincount(block % _FEATURES, minlength=_FEATURES) for block in blocks])
    # The square root keeps the commonest tokens from deciding alone (Hellinger distance).
    features = np.sqrt(counts / counts.sum(axis=1, keepdims=True))
    classes = min(_CLASSES, len(np.unique(features, axis=0)))
    _, found = kmeans2(features, classes, minit="++", rng=np.random.default_rng([seed, _STATED_SEED]))
    return found.astype(np.int64)


def _deal(blocks: list[Block], nodes: Sequence[str], dealing: Dealing, seed: int) -> list[list[Block]]:
    if dealing.kind == "dirichlet":
        return _deal_classes(blocks, len(nodes), dealing.alpha, seed)
    if dealing.kind == "capacity":
        sizes = _apportion(len(blocks), _shares(nodes, dealing.capacities or {}))
    else:
        sizes = [len(blocks) // len(nodes)] * len(nodes)
    starts = np.cumsum([0, *sizes])
    return [blocks[start : start + size] for start, size in zip(starts[:-1], sizes, strict=True)]


def _shares(nodes: Sequence[str], capacities: Mapping[str, float | None]) -> NDArray[np.float64]:
    """Return each node's share of the capacity; one of which nothing is known counts as an average one."""
    known = [value for node in nodes if (value := capacities.get(node)) is not None]
    average = float(np.mean(known)) if known else 1.0
    values = np.array([capacities.get(node) or average for node in nodes])
    return values / values.sum()


def _apportion(count: int, shares: NDArray[np.float64]) -> list[int]:
    """Divide `count` blocks by shares: one for each, the rest by largest remainder."""
    exact = shares * (count - len(shares))
    sizes = np.floor(exact).astype(int)
    for index in np.argsort(sizes - exact, kind="stable")[: count - len(shares) - int(sizes.sum())]:
        sizes[index] += 1
    return [int(size) + 1 for size in sizes]


def _deal_classes(blocks: list[Block], nodes: int, alpha: float, seed: int) -> list[list[Block]]:
    """Deal each class by shares of its own; then whoever has most gives to who has nothing."""
    rng = np.random.default_rng([seed, _STATED_SEED, 1])
    dealt: list[list[Block]] = [[] for _ in range(nodes)]
    classes = content_classes(blocks, seed=seed)
    for kind in np.unique(classes):
        members = np.flatnonzero(classes == kind)
        bounds = np.round(np.cumsum(rng.dirichlet([alpha] * nodes)) * len(members)).astype(int)
        for node, part in enumerate(np.split(members, bounds[:-1])):
            dealt[node].extend(blocks[index] for index in part)
    for part in dealt:
        if not part:
            part.append(max(dealt, key=len).pop())
    return dealt
