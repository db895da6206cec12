"""How a peer is driven: `peers/commands.py` of round_overhead, with answers of the peer's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from benchmarks.round_overhead.peers import commands


def serve(one_run: Callable[[], dict[str, Any]], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer `ready`, then what a run gave for each line of standard input."""
    answer({"ready": True})
    for _ in sys.stdin:
        answer(one_run())


take_answers_apart = commands.take_answers_apart
