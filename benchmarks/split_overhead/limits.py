"""What physics allows a ring of two over one link, and how much of a link a transfer used: pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.envelope import Target

Row = Mapping[str, Any]
PART = "networks"
DECODE_LIMIT, USE_LIMIT = 1.10, 0.80
_EDGE = 0.01


def token_s(
    *, compute_s: float, delay_s: float, round_bytes: float, rate_bps: float, burst_bytes: float
) -> float:
    """Return the least time of a token: its computing, both ways' propagation and transmission.

    `burst_bytes` go unshaped each way, as the emulator's token bucket lets them after a pause.
    """
    shaped_bytes = max(0.0, round_bytes - 2 * burst_bytes)
    return compute_s + 2 * delay_s + 8 * shaped_bytes / rate_bps


def prompt_s(*, compute_s: float, delay_s: float, sent_bytes: float, rate_bps: float) -> float:
    """Return the least time to a prompt's first token when computing and sending overlap without end.

    Both stages compute half of `compute_s`; the slowest of stage and link sets the pace.
    """
    return max(compute_s / 2, 8 * sent_bytes / rate_bps) + 2 * delay_s


def transfer_bps(samples: Sequence[tuple[float, int]], payload_bytes: int) -> float | None:
    """Return the rate at which `payload_bytes` came, from the first hundredth of them on.

    `samples` are (seconds, bytes so far), in order, all headers counted: the payload's count is reached a
    little before its end, and what comes after it is not looked at. None where less came, or all at once.
    """
    counts = [count for _, count in samples]
    if not counts or counts[-1] < counts[0] + payload_bytes:
        return None
    begin = bisect_left(counts, counts[0] + _EDGE * payload_bytes)
    end = bisect_left(counts, counts[0] + payload_bytes)
    seconds = samples[end][0] - samples[begin][0]
    return 8 * (counts[end] - counts[begin]) / seconds if seconds > 0 else None


def targets(rows: Sequence[Row]) -> list[Target]:
    """Compute the targets over the cells whose emulation kept up; the others stay in the rows."""
    own = [row for row in rows if row["part"] == PART]
    sound = [row for row in own if row["emulation_kept_up"]]
    decode = [row["median_over_limit"] for row in sound if row["arm"] == "decode"]
    use = [row["use_of_rate"] for row in sound if row["arm"] == "prompt rows" and row["use_of_rate"]]
    late = len(own) - len(sound) if own else None
    return [
        Target(
            name="networks_worst_token_over_limit", value=_worst(decode, max), op="<=", limit=DECODE_LIMIT
        ),
        Target(name="networks_tokens_within_limit", value=_share(decode, DECODE_LIMIT), op=">=", limit=1.0),
        Target(name="networks_worst_use_of_link", value=_worst(use, min), op=">=", limit=USE_LIMIT),
        Target(
            name="networks_uses_within_limit",
            value=None if not use else sum(value >= USE_LIMIT for value in use) / len(use),
            op=">=",
            limit=1.0,
        ),
        Target(name="networks_rows_emulated_late", value=late, op="<=", limit=0),
    ]


def _worst(values: Sequence[float], of: Any) -> float | None:
    return of(values) if values else None


def _share(values: Sequence[float], most: float) -> float | None:
    return sum(value <= most for value in values) / len(values) if values else None
