"""How long it takes to score a million nodes and choose whom to eliminate, or to choose by plan or utility.

`python -m benchmarks.scoring [--quick] [--seed N] --json FILE`. The variants are interleaved; a row is one
repetition of one of them over synthetic criteria in natural units, unknown values among them. The scores are
those that `eliminate` can use. `plan` compares the million sets of the fastest 1..N by time, noise and the
make-up of their data, `oort` works out utilities and draws half of the nodes, `deadline` draws by lot
and keeps the fastest, `random` draws whom to eliminate. `all` has nothing to choose.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks import envelope
from benchmarks.envelope import Target
from orchestrator.core.scoring import fill_unknown, score
from orchestrator.core.selection.deadline import DeadlineOptions, lot
from orchestrator.core.selection.elimination import eliminations_per_epoch
from orchestrator.core.selection.oort import draw
from orchestrator.core.selection.planning import PlanOptions, Pool, costs

VARIANTS = ("projection", "euclidean", "printed")
CHOOSERS = ("plan", "oort", "deadline", "random")
CLASSES = 64
BYTES = 2 * 500e6
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


def data(nodes: int, seed: int) -> np.ndarray:
    """Draw the shares of classes in each node's data [N, CLASSES]."""
    shares = np.random.default_rng([seed, 1]).standard_exponential((nodes, CLASSES))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def choosing(values: np.ndarray, makeup: np.ndarray, chooser: str, seed: int) -> dict[str, Any]:
    """Forecast every node's round from its criteria and choose once; return the seconds of both."""
    began = time.perf_counter()
    compute, bandwidth = fill_unknown(values)[:, :2].T
    round_s = 8 * BYTES / bandwidth + 1e12 / compute
    scored = time.perf_counter()
    if chooser == "plan":
        pool = Pool(round_s=round_s, load_s=0.01 * round_s, samples=np.ones(len(values)), makeup=makeup)
        options = PlanOptions()
        chosen_count = costs(pool, EPOCHS, options).best(options.least_efficiency)
    elif chooser == "oort":
        late = np.median(round_s) / round_s
        utilities = np.where(late < 1, late**2, 1.0)
        chosen_count = len(draw(utilities, len(values) // 2, np.random.default_rng(seed)))
    elif chooser == "deadline":
        share = DeadlineOptions()
        keep = round(share.share * len(values))
        asked = lot(len(values), round(share.over_select * keep), seed=seed, epoch=1)
        chosen_count = len(asked[np.argpartition(round_s[asked], keep - 1)[:keep]])
    else:
        count = eliminations_per_epoch(len(values), EPOCHS)
        chosen_count = len(Random(seed).sample(range(len(values)), count))
    chosen = time.perf_counter()
    return {
        "variant": chooser,
        "nodes": len(values),
        "chosen": chosen_count,
        "score_s": scored - began,
        "select_s": chosen - scored,
        "total_s": chosen - began,
    }


def once(values: np.ndarray, makeup: np.ndarray, variant: str, seed: int) -> dict[str, Any]:
    """Run one repetition of a score or a chooser."""
    return repetition(values, variant) if variant in VARIANTS else choosing(values, makeup, variant, seed)


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
    makeup = data(len(values), options.seed)
    arms = (*VARIANTS, *CHOOSERS)
    for variant in arms:
        once(values, makeup, variant, options.seed)  # the first touch of memory is slow: not kept
    rows = [once(values, makeup, variant, options.seed) for _ in range(7) for variant in arms]
    targets = []
    for variant in arms:
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
