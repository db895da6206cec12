"""How an arm is driven: a command a line on standard input, a JSON object a line on the answer's stream.

Peers run this in environments that have nothing of this project, so it uses the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

_CLEAR_PEAK = "5"


def take_answers_apart() -> Callable[[dict[str, Any]], None]:
    """Keep standard output for answers: whatever else is printed goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=stream, flush=True)


def serve(one_round: Callable[[], None], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer `ready`, then do a round for each line `round`, until the input ends.

    An answer tells the round's seconds, and of this process, the server's: resident bytes when the round
    began and the highest since.
    """
    answer({"ready": True})
    for line in sys.stdin:
        if line.strip() != "round":
            break
        clear_peak()
        before = memory_bytes("VmRSS")
        began = time.perf_counter()
        one_round()
        wall_s = time.perf_counter() - began
        answer({"wall_s": wall_s, "server_before_bytes": before, "server_peak_bytes": memory_bytes("VmHWM")})


def clear_peak() -> None:
    """Make the kernel forget the highest resident size of this process (proc(5), clear_refs)."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write(_CLEAR_PEAK)


def memory_bytes(key: str) -> int:
    """Read VmRSS or VmHWM of this process."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise KeyError(key)
