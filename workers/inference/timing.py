"""Where the time of a token went: computing, waiting in queues, and between the nodes. Durations only.

Clocks of nodes are not compared. Each node measures what it took for the rows and how long they had waited,
and adds both to what goes on with them; what a way round the ring took, by the head's clock, beyond their sum
is the wire: packing, encryption, the network and the waking of threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from workers.errors import WireError

MOST_NODES = 64
NS = 1e-9
_LONGEST_S = 86_400.0
_LONGEST_NAME = 128
_WAY = f"way must be a list of at most {MOST_NODES} [node, paced, compute_s, queue_s]"


class Spent(NamedTuple):
    """What a node took for the rows of a pass, and how long they had waited there; `paced`: emulated."""

    node: str
    paced: bool
    compute_s: float
    queue_s: float


Way = tuple[Spent, ...]
"""The nodes that rows have passed, the head not among them."""


class Pass(NamedTuple):
    """A way round the ring, from when the rows left the head to when they were back."""

    round_s: float
    way: Way


def way_fields(way: Way) -> list[list[Any]]:
    """Return the field `way` of a frame."""
    return [list(spent) for spent in way]


def way_of(message: Mapping[str, Any]) -> Way:
    """Check the field `way` of a frame; raises WireError."""
    told = message.get("way")
    if not isinstance(told, list) or len(told) > MOST_NODES:
        raise WireError(f"{_WAY}; it is {str(told)[:80]!r}")
    return tuple([_spent(item) for item in told])


def _spent(item: object) -> Spent:
    if not isinstance(item, list) or len(item) != len(Spent._fields):
        raise WireError(f"{_WAY}; one is {str(item)[:80]!r}")
    node, paced, compute_s, queue_s = item
    named = isinstance(node, str) and 0 < len(node) <= _LONGEST_NAME and isinstance(paced, bool)
    if not named or not _is_duration(compute_s) or not _is_duration(queue_s):
        raise WireError(f"{_WAY}, seconds from 0 to {_LONGEST_S:g}; one is {str(item)[:80]!r}")
    return Spent(node, paced, float(compute_s), float(queue_s))


def _is_duration(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= _LONGEST_S  # type: ignore[arg-type]


def way_of_row(nodes: Sequence[tuple[str, bool]], spent_ns: Sequence[int]) -> Way:
    """Name what the nodes of a ring told of a row: nanoseconds waiting and computing, of each in turn.

    `nodes` are those that a prompt passed; where they are not as many as have told, they have no names.
    """
    count = len(spent_ns) // 2
    known = (
        nodes if len(nodes) == count else [(f"node {place + 2} of the ring", False) for place in range(count)]
    )
    seconds = [min(max(0.0, value * NS), _LONGEST_S) for value in spent_ns]
    return tuple(
        [Spent(*node, seconds[2 * place + 1], seconds[2 * place]) for place, node in enumerate(known)]
    )


def told(
    *, elapsed_s: float, head: str, head_compute_s: float, paced: bool, passes: Sequence[Pass]
) -> dict[str, Any]:
    """Return how a token's `elapsed_s` is told: that of its one pass, or of the pieces of its prompt.

    Of one pass compute, queue and wire add up to `elapsed_s`: what is left at the head is its queue. Pieces
    are under way at the same time, so that their sums can be more.
    """
    nodes = {head: [head_compute_s, 0.0]}
    wire_s = away_s = 0.0
    for one in passes:
        there_s = 0.0
        for spent in one.way:
            paced = paced or spent.paced
            both = nodes.setdefault(spent.node, [0.0, 0.0])
            both[0] += spent.compute_s
            both[1] += spent.queue_s
            there_s += spent.compute_s + spent.queue_s
        wire_s += max(0.0, one.round_s - there_s)
        away_s += one.round_s
    nodes[head][1] += max(0.0, elapsed_s - away_s - head_compute_s)
    return {
        "compute_s": sum([compute_s for compute_s, _ in nodes.values()]),
        "queue_s": sum([queue_s for _, queue_s in nodes.values()]),
        "wire_s": wire_s,
        "emulated": paced,
        "nodes": [[node, *both] for node, both in nodes.items()],
    }
