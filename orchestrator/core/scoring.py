"""Score nodes by their distance to the utopia point (Pekel 2025, Eqs. 2 and 3), oriented first.

The paper does not orient its criteria: taken literally, a node with every criterion at its worst can outrank
a better one (DESIGN.md, section 6). Here cost criteria become 1 - n before anything else, which puts the
utopia point at (1, 1, 1, 1, 1); the literal form is kept as the variant `printed`, for comparison.

Shapes: N nodes, K = 5 criteria in the order of CRITERIA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

from orchestrator.core.decisions import CriterionScore, NodeScore
from orchestrator.core.errors import InvalidValue

CRITERIA = ("compute", "bandwidth", "delay", "loss", "time")
BENEFITS = frozenset({"compute", "bandwidth"})
VARIANTS = ("projection", "euclidean", "printed")

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_IS_BENEFIT: Bools = np.array([name in BENEFITS for name in CRITERIA])
_PRINTED_UTOPIA: Floats = _IS_BENEFIT.astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights of the criteria: non-negative, sum 1 (Pekel 2025, Eq. 2).

    The defaults are fitted: of all weights in quarters these save elimination the most time in simulation
    (`python -m benchmarks.stragglers.fit`, docs/adr/0016). Compute, delay and loss have their effect in time.
    """

    compute: float = 0.0
    bandwidth: float = 0.25
    delay: float = 0.0
    loss: float = 0.0
    time: float = 0.75

    @classmethod
    def equal(cls) -> Weights:
        """Return the same weight for every criterion."""
        return cls(**dict.fromkeys(CRITERIA, 1 / len(CRITERIA)))

    def __post_init__(self) -> None:
        for name in CRITERIA:
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise InvalidValue(f"weight {name} is {value}, must be at least 0")
        total = sum(self.vector())
        if abs(total - 1) > 1e-6:
            values = ", ".join(f"{name} {getattr(self, name):g}" for name in CRITERIA)
            raise InvalidValue(f"the weights sum to {total:g}, not 1 ({values}); divide each by {total:g}")

    def vector(self) -> Floats:
        """Return the weights in the order of CRITERIA."""
        return np.array([getattr(self, name) for name in CRITERIA], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What one node is scored on; None where unknown, with the reason under `notes`.

    Higher is better for `compute` (FLOP/s) and `bandwidth` (bit/s), lower for `delay` (s), `loss` (ratio) and
    `time` (s).
    """

    node: str
    compute: float | None
    bandwidth: float | None
    delay: float | None
    loss: float | None
    time: float | None
    notes: Mapping[str, str]


def score_nodes(
    nodes: Sequence[Criteria], weights: Weights, variant: str = "euclidean"
) -> tuple[NodeScore, ...]:
    """Score `nodes` against each other, best first; equal scores are ordered by name.

    An unknown value counts as the worst known one of the scored set, noted in the record; a criterion that
    nobody knows is constant, so it separates nobody.

    Raises:
        InvalidValue: unknown variant.
    """
    if not nodes:
        _check_variant(variant)
        return ()
    values = np.array([_row(node) for node in nodes], dtype=np.float64)
    oriented = orient(normalise(fill_unknown(values)))
    scores = score(fill_unknown(values), weights.vector(), variant)
    order = sorted(range(len(nodes)), key=lambda i: (-scores[i], nodes[i].node))
    return tuple(
        _record(nodes[i], float(scores[i]), rank, oriented[i]) for rank, i in enumerate(order, start=1)
    )


def score(values: Floats, weights: Floats, variant: str = "euclidean") -> Floats:
    """Score the rows of `values` [N, K] (finite, natural units, not oriented); returns [N].

    projection: 1 - |<w, N> - <w, lambda>| with oriented N and lambda = (1, 1, 1, 1, 1) (Eqs. 2 and 3).
    euclidean: 1 - ||sqrt(w) * (N - 1)||, the weighted distance itself, in 0..1.
    printed: Eq. 3 to the letter, N not oriented, lambda = (1, 1, 0, 0, 0).

    Raises:
        InvalidValue: unknown variant.
    """
    _check_variant(variant)
    normal = normalise(values)
    if variant == "printed":
        return np.asarray(1 - np.abs(normal @ weights - _PRINTED_UTOPIA @ weights))
    gaps = 1 - orient(normal)
    if variant == "projection":
        return np.asarray(1 - np.abs(gaps @ weights))
    return np.asarray(1 - np.sqrt(np.square(gaps) @ weights))


def normalise(values: Floats) -> Floats:
    """Min-max normalise each column of `values` [N, K] to 0..1.

    A constant column is the same at its best and its worst, so it is put at its utopia: 1 for benefits, 0 for
    costs (oriented: 1 for all).
    """
    low, high = values.min(axis=0), values.max(axis=0)
    span = high - low
    constant = span <= 0
    normal = (values - low) / np.where(constant, 1.0, span)
    return np.asarray(np.where(constant, _PRINTED_UTOPIA, normal))


def orient(normal: Floats) -> Floats:
    """Turn cost criteria round, so that 1 is best in every column of `normal` [N, K]."""
    return np.asarray(np.where(_IS_BENEFIT, normal, 1 - normal))


def fill_unknown(values: Floats) -> Floats:
    """Replace NaN by the worst known value of its column (0 where nobody knows)."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    lowest = np.where(missing, np.inf, values).min(axis=0)
    highest = np.where(missing, -np.inf, values).max(axis=0)
    worst = np.where(_IS_BENEFIT, lowest, highest)
    return np.asarray(np.where(missing, np.where(np.isfinite(worst), worst, 0.0), values))


def _row(node: Criteria) -> list[float]:
    values = (getattr(node, name) for name in CRITERIA)
    return [float("nan") if value is None else value for value in values]


def _record(node: Criteria, value: float, rank: int, oriented: Floats) -> NodeScore:
    criteria = {
        name: CriterionScore(value=getattr(node, name), oriented=float(oriented[k]), note=_note(node, name))
        for k, name in enumerate(CRITERIA)
    }
    return NodeScore(node=node.node, score=value, rank=rank, criteria=criteria)


def _note(node: Criteria, name: str) -> str | None:
    if getattr(node, name) is not None:
        return node.notes.get(name)
    reason = node.notes.get(name, "unknown")
    return f"{reason}; counted as the worst of the scored set"


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise InvalidValue(f"score variant {variant!r} is unknown; known: {', '.join(VARIANTS)}")
