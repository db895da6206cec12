"""From rows to figures: pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.envelope import Target
from benchmarks.split_overhead import limits

Row = Mapping[str, Any]
STAGES = (2, 3, 4)
RPC_ONE, RPC_SPLIT = "llamacpp one", "llamacpp split"
"""llama.cpp in one process, and its layers over several by its RPC backend, which does not encrypt."""
_FIGURES = {
    ("hop", None): ("hop_us", "us"),
    ("correct", None): ("tokens", "tokens per case"),
    ("fairness 2", None): ("gap_most_over_piece", "longest gap / piece"),
    ("fairness 3", None): ("gap_most_over_piece", "longest gap / piece"),
    ("wire", None): ("bytes_per_hop", "bytes per token and hop"),
    (limits.PART, "decode"): ("median_over_limit", "x the limit"),
    (limits.PART, "prompt"): ("over_limit", "x the limit"),
    (limits.PART, None): ("use_of_rate", "x the link's rate"),
}
"""What a part's rows measure, and in what; what is not listed, tokens/s."""
_CLIENTS_LIMITS = {
    "errors": 0,
    "tokens_lost_or_doubled": 0,
    "answers_that_differ": 0,
    "memory_growth_most": 1.05,
}
"""Memory is called flat where no process grows by more than this from the middle third to the last."""
_STAGES_LIMITS = {2: 0.97, 3: 0.95, 4: 0.92}


def targets(rows: Sequence[Row]) -> list[Target]:
    """Compute the targets; what was not measured has no value."""
    over_peers = {
        "single_over_huggingface": (ratio(rows, "single", "ours", "huggingface"), 2.2),
        "single_over_llamacpp": (ratio(rows, "single", "ours", "llamacpp"), 0.75),
    }
    over_one = {
        f"{stages}_stages_over_one": (ratio(rows, f"stages {stages}", "split", "one"), limit)
        for stages, limit in _STAGES_LIMITS.items()
    }
    over_one["batch_2_stages_over_one"] = ratio(rows, "batch", "split", "one"), 1.6
    return [
        *(
            Target(name=name, value=value, op=">=", limit=limit)
            for name, (value, limit) in over_peers.items()
        ),
        Target(name="tokens_as_huggingface", value=_same_tokens(rows), op="==", limit=True),
        *(Target(name=name, value=value, op=">=", limit=limit) for name, (value, limit) in over_one.items()),
        Target(name="hop_us", value=_hop_us(rows), op="<=", limit=80.0),
        *limits.targets(rows),
        Target(name="correct_differences", value=_differences(rows), op="==", limit=0),
        *_client_targets(rows),
    ]


def _client_targets(rows: Sequence[Row]) -> list[Target]:
    found = next((row for row in rows if row["part"] == "clients"), {})
    return [
        Target(name=f"clients_{name}", value=found.get(name), op="<=", limit=limit)
        for name, limit in _CLIENTS_LIMITS.items()
    ]


def attainable(rows: Sequence[Row]) -> str | None:
    """Say what a ring of two with a batch could reach; None if that was not measured.

    Each of its stages has half of the requests at a time and half of the layers, so that two stages that
    never wait make as many tokens/s as two workers that have all layers and half of the requests each. If
    that is less than twice what one such worker makes alone, the memory does not feed both.
    """
    half, halves = ratio(rows, "batch", "half", "one"), ratio(rows, "batch", "halves", "one")
    reached = ratio(rows, "batch", "split", "halves")
    if half is None or halves is None or reached is None:
        return None
    return (
        f"batch: two stages that never wait would make {halves:.2f} times the tokens/s of one, since each "
        f"has half of the batch at a time and both read one memory ({2 * half:.2f} if each had its own); "
        f"of that, {reached:.0%} were reached"
    )


def rpc_kept(rows: Sequence[Row]) -> str | None:
    """Say what llama.cpp keeps when its RPC backend splits it, where that was measured."""
    found = {stages: ratio(rows, f"stages {stages}", RPC_SPLIT, RPC_ONE) for stages in STAGES}
    told = ", ".join(f"{kept:.3f} with {stages}" for stages, kept in found.items() if kept is not None)
    return (
        f"stages: of its own single process, llama.cpp over RPC, unencrypted, keeps {told}" if told else None
    )


def ratio(rows: Sequence[Row], part: str, arm: str, base: str) -> float | None:
    """Return the median over pairs of one arm's tokens/s through the other's; None without pairs."""
    speeds = {
        (row["arm"], row["pair"]): row["tokens_per_s"]
        for row in rows
        if row["part"] == part and row["arm"] in (arm, base)
    }
    pairs = [pair for name, pair in speeds if name == arm and (base, pair) in speeds]
    return statistics.median(speeds[arm, pair] / speeds[base, pair] for pair in pairs) if pairs else None


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, per part and arm, how often it ran and the median, least and most of what it measured."""
    found = []
    for part, arm in dict.fromkeys((row["part"], row["arm"]) for row in rows):
        own = [row for row in rows if (row["part"], row["arm"]) == (part, arm)]
        figure, unit = _FIGURES.get((part, arm)) or _FIGURES.get((part, None), ("tokens_per_s", "tokens/s"))
        values = [row[figure] for row in own if row[figure] is not None]
        if not values:
            continue
        line = {"part": part, "arm": arm, "runs": len(own), "unit": unit, "median": statistics.median(values)}
        found.append({**line, "least": min(values), "most": max(values)})
    return found


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return the place of the first token that differs, None if none does."""
    places = (place for place, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return next(places, None)


def _hop_us(rows: Sequence[Row]) -> float | None:
    values = [row["hop_us"] for row in rows if row["part"] == "hop"]
    return statistics.median(values) if values else None


def ties(rows: Sequence[Row]) -> str | None:
    """Say in one line what was compared and how often two tokens were as good; None if nothing was."""
    own = [row for row in rows if row["part"] == "correct"]
    if not own:
        return None
    compared, ties = (sum(row[name] for row in own) for name in ("tokens", "ties"))
    differences = _differences(own)
    return f"correct: {len(own)} cases, {compared} tokens compared, {differences} differences, {ties} ties"


def _differences(rows: Sequence[Row]) -> int | None:
    told = [len(row["differences"]) for row in rows if row["part"] == "correct"]
    return sum(told) if told else None


def _same_tokens(rows: Sequence[Row]) -> bool | None:
    own = [row for row in rows if row["part"] == "single"]
    told = [row["same_tokens"] for row in own if row["same_tokens"] is not None]
    return all(told) if told else None
