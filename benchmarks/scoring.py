"""How long it takes to score a million nodes and choose whom to eliminate.

`python -m benchmarks.scoring [--quick] [--seed N] --json FILE`. The scores are interleaved; a row is one
repetition of one score over synthetic criteria in natural units, unknown values among them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import envelope
from benchmarks.envelope import Target
from orchestrator.core.scoring import fill_unknown, score
from orchestrator.core.selection.elimination import eliminations_per_epoch

VARIANTS = ("projection", "euclidean", "printed")
EPOCHS = 10
LIMIT_S = 0.5
UNKNOWN_RATIO = 0.01


def criteria(nodes: int, seed: int) -> np.ndarray:
    """Draw criteria [N, 5] in the order compute, bandwidth, delay, loss, time; NaN is unknown."""
    draw = np.random.default_rng(seed)
    columns = (
        np.maximum(draw.normal(30, 15, nodes), 1) * 4e7,
        draw.exponential(16e6, nodes),
        draw.exponential(0.058, nodes),
        draw.exponential(0.01, nodes),
        draw.lognormal(2, 0.5, nodes),
    )
    values = np.stack(columns, axis=1)
    values[draw.random(values.shape) < UNKNOWN_RATIO] = np.nan
    return values


def repetition(values: np.ndarray, variant: str) -> dict[str, Any]:
    """Score and select once; return the seconds of both."""
    weights = np.full(values.shape[1], 1 / values.shape[1])
    began = time.perf_counter()
    scores = score(fill_unknown(values), weights, variant)
    scored = time.perf_counter()
    count = eliminations_per_epoch(len(values), EPOCHS)
    lowest = np.argpartition(scores, count)[:count]
    chosen = time.perf_counter()
    return {
        "variant": variant,
        "nodes": len(values),
        "eliminated": len(lowest),
        "score_s": scored - began,
        "select_s": chosen - scored,
        "total_s": chosen - began,
    }


def main() -> int:
    """Run the benchmark; exit 0 when it ran, whether targets are met or not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="a thousandth of the nodes: to see that it works"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    values = criteria(1_000 if options.quick else 1_000_000, options.seed)
    for variant in VARIANTS:
        repetition(values, variant)  # the first touch of memory is slow: not kept
    rows = [repetition(values, variant) for _ in range(7) for variant in VARIANTS]
    targets = []
    for variant in VARIANTS:
        median_s = statistics.median(row["total_s"] for row in rows if row["variant"] == variant)
        targets.append(Target(name=f"{variant}_median_s", value=median_s, op="<=", limit=LIMIT_S))
        print(f"{variant:12} {len(values)} nodes: median {median_s:.3f} s, limit {LIMIT_S} s")
    result = {
        "command": " ".join(["python -m benchmarks.scoring", *sys.argv[1:]]),
        "seed": options.seed,
        "commit": envelope.commit(),
        "machine": envelope.machine(),
        "profile": "no emulation: computation only",
        "rows": rows,
        "targets": [target.to_json() for target in targets],
    }
    envelope.write(options.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
