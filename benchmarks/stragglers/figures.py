"""Compute figures and targets from rows: completion, loss, energy, and the reduction against `all`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks.envelope import Target
from benchmarks.stragglers import arms
from benchmarks.stragglers.fit import follow
from benchmarks.stragglers.fitted import CURVE
from benchmarks.stragglers.sweep import RATE_FLOOR_BPS

Row = dict[str, Any]
GROUP = (
    "where",
    "congestion_control",
    "rate_floor_bps",
    "measurement_error",
    "partition",
    "setup",
    "nodes",
)
_COMPLETION_LIMIT, _EPOCH_LIMIT, _LOSS_LIMIT = 0.10, 0.15, 0.02
_SCENARIOS_LEAST = 6
_LOSS_NODES = (12, 40)
_REDUCTIONS = (
    # arm, setup, nodes, least median reduction
    (arms.FITTED.name, 1, 40, 0.792),
    (arms.FITTED.name, 2, 40, 0.73),
    (arms.FITTED.name, 3, 40, 0.792),
    (arms.PLAN.name, 1, 40, 0.93),
    (arms.PLAN.name, 2, 40, 0.88),
    (arms.PLAN.name, 3, 40, 0.93),
    (arms.PLAN.name, 1, 12, 0.85),
    (arms.PLAN.name, 2, 12, 0.85),
    (arms.PLAN.name, 3, 12, 0.85),
)


def summarise(rows: Iterable[Row]) -> list[Row]:
    """Return a line per group and arm; its reduction is the median of each seed's against its own `all`."""
    groups: dict[tuple[Any, ...], dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["where"] != "validation":
            groups[tuple(row.get(name) for name in GROUP)][row["arm"]][row["seed"]] = row
    return [
        dict(zip(GROUP, key, strict=True)) | _line(name, found, by_arm.get(arms.ALL.name, {}))
        for key, by_arm in groups.items()
        for name, found in by_arm.items()
    ]


def _line(name: str, found: dict[int, Row], everybody: dict[int, Row]) -> Row:
    completion = np.array([row["completion_s"] for row in found.values()])
    p10, middle, p90 = np.percentile(completion, [10, 50, 90])
    pairs = [(row, everybody[seed]) for seed, row in found.items() if seed in everybody]
    reductions = [1 - row["completion_s"] / slow["completion_s"] for row, slow in pairs]
    losses = [row["loss"][-1] / slow["loss"][-1] - 1 for row, slow in pairs]
    curves = [
        follow(CURVE, row["contributed"])[-1] / follow(CURVE, slow["contributed"])[-1] - 1
        for row, slow in pairs
        if row["where"] == "simulation, trained" and row["partition"] == "equal"
    ]
    joules = [row["energy_j"] for row in found.values() if row["energy_j"] is not None]
    return {
        "arm": name,
        "policy": next(iter(found.values()))["policy"],
        "seeds": len(found),
        "completion_median_s": float(middle),
        "completion_p10_s": float(p10),
        "completion_p90_s": float(p90),
        "reduction_median": median(reductions) if reductions else None,
        "reduction_p10": float(np.percentile(reductions, 10)) if reductions else None,
        "loss_per_epoch": _median_per_epoch([row["loss"] for row in found.values()]),
        "final_loss_difference": median(losses) if losses else None,
        "final_loss_difference_least": min(losses, default=None),
        "final_loss_difference_most": max(losses, default=None),
        "curve_final_loss_difference": median(curves) if curves else None,
        "energy_median_j": median(joules) if joules else None,
    }


def _median_per_epoch(losses: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [
        median(known) if (known := [value for value in column if value is not None]) else None
        for column in zip(*losses, strict=True)
    ]


def targets(rows: Sequence[Row], lines: Sequence[Row]) -> list[Target]:
    """Compute the targets that these rows can answer."""
    made = []
    main = [line for line in lines if line["where"] == "simulation" and is_main(line)]
    for arm, setup, nodes, limit in _REDUCTIONS:
        for line in main:
            if (line["arm"], line["setup"], line["nodes"]) == (arm, setup, nodes):
                name = f"{arm}: reduction, setup {setup}, {nodes} nodes"
                made.append(Target(name=name, value=line["reduction_median"], op=">=", limit=limit))
    return made + _loss_targets(lines) + _agreement(rows)


def is_main(line: Row) -> bool:
    """Say whether a simulated line is of the main figures, not of the sensitivity part."""
    usual = line["congestion_control"] == "bbr" and line["rate_floor_bps"] == RATE_FLOOR_BPS
    return bool(usual and line["measurement_error"] is None)


def _loss_targets(lines: Sequence[Row]) -> list[Target]:
    """Final loss against `all` on equal partitions: trained, emulated, and by the curve in the main rows."""
    sources = {"simulation, trained": "trained", "simulation": "by the curve", "emulation": "emulated"}
    return [
        Target(
            name=f"{line['arm']}: final loss over all's, setup {line['setup']}, {line['nodes']} nodes, "
            + sources[line["where"]],
            value=line["final_loss_difference"],
            op="<=",
            limit=_LOSS_LIMIT,
        )
        for line in lines
        if line["arm"] in (arms.FITTED.name, arms.PLAN.name)
        and line["partition"] == "equal"
        and line["nodes"] in _LOSS_NODES
        and (line["where"] != "simulation" or is_main(line))
        and line["where"] in sources
    ]


def _agreement(rows: Sequence[Row]) -> list[Target]:
    """Say how simulation and emulation agree; a run whose links could not keep up is not valid."""
    found = [row for row in rows if row["where"] == "validation"]
    if not found:
        return []
    valid = [row for row in found if row["links_kept_up"]]
    epochs = [abs(error) for row in valid for error in row["epoch_errors"]]
    worst = max((abs(row["completion_error"]) for row in valid), default=None)
    return [
        Target(name="validated scenarios", value=len(valid), op=">=", limit=_SCENARIOS_LEAST),
        Target(name="completion error, worst", value=worst, op="<=", limit=_COMPLETION_LIMIT),
        Target(name="epoch error, worst", value=max(epochs, default=None), op="<=", limit=_EPOCH_LIMIT),
    ]
