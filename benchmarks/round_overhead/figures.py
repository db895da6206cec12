"""From rows to figures: medians per arm, ratios within a group of arms that took turns, targets."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from benchmarks.envelope import Target

Row = dict[str, Any]


def summary(rows: list[Row]) -> list[Row]:
    """Give one line per group and arm: medians, and the spread of the seconds."""
    by_arm: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        by_arm[row["group"], row["arm"], row["workers"]].append(row)
    return [
        {
            "group": group,
            "arm": arm,
            "workers": workers,
            "rounds": len(some),
            "wall_s": statistics.median(row["wall_s"] for row in some),
            "wall_s_least": min(row["wall_s"] for row in some),
            "wall_s_most": max(row["wall_s"] for row in some),
            "cpu_s": statistics.median(row["cpu_s"] for row in some),
            "lo_bytes": statistics.median(row["lo_bytes"] for row in some),
            "server_peak_bytes": max(row["server_peak_bytes"] for row in some),
            "server_model_sizes": _most(row.get("server_model_sizes") for row in some),
        }
        for (group, arm, workers), some in by_arm.items()
    ]


def targets(rows: list[Row]) -> list[Target]:
    """Compute the targets; None where an arm was not measured."""
    sizes = [row["server_model_sizes"] for row in rows if row.get("server_model_sizes") is not None]
    return [
        Target(name="plain_over_gloo", value=_ratio(rows, "ours plain", "gloo"), op="<=", limit=1.2),
        Target(name="tls_over_gloo", value=_ratio(rows, "ours tls", "gloo"), op="<=", limit=3.0),
        Target(name="tls_over_flower_tls", value=_ratio(rows, "ours tls", "flower tls"), op="<=", limit=0.2),
        Target(name="server_model_sizes", value=max(sizes, default=None), op="<=", limit=4.0),
    ]


def references(rows: list[Row]) -> dict[str, float | None]:
    """Say what part of a ratio is the transport's, by stars that only move the bytes."""
    return {
        "star_plain_over_gloo": _ratio(rows, "star plain", "gloo"),
        "star_tls_over_gloo": _ratio(rows, "star tls", "gloo"),
        "plain_over_star_plain": _ratio(rows, "ours plain", "star plain"),
        "tls_over_star_tls": _ratio(rows, "ours tls", "star tls"),
    }


def _ratio(rows: list[Row], arm: str, against: str) -> float | None:
    """Give the ratio of medians over the groups in which both arms took turns with as many workers."""
    ratios = []
    for group in {row["group"] for row in rows}:
        some = [row for row in rows if row["group"] == group]
        counts = {name: {row["workers"] for row in some if row["arm"] == name} for name in (arm, against)}
        if counts[arm] and counts[arm] == counts[against]:
            ratios.append(_median_s(some, arm) / _median_s(some, against))
    return statistics.median(ratios) if ratios else None


def _median_s(rows: list[Row], arm: str) -> float:
    return statistics.median(row["wall_s"] for row in rows if row["arm"] == arm)


def _most(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None
