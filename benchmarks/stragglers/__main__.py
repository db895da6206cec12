"""Run from the command line; exit 0 when it ran, whether targets are met or not."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

import benchmarks.stragglers as package
from benchmarks import envelope
from benchmarks.stragglers import arms, emulated, figures, plots, sweep, table, trained, validation
from benchmarks.stragglers.fitted import CURVE, FITTED_WEIGHTS, RECORD
from orchestrator.simulation import Measuring
from topologies.errors import TopologyError

Row = dict[str, Any]
PARTS = ("simulation", "sensitivity", "training", "validation", "emulation")
SETUPS, NODES = (1, 2, 3), tuple(range(12, 41, 4))
ENDS = (12, 40)
FLOOR_OF_TESTBED_BPS = 2e6
LARGE_ERROR = 0.3
"""Of delay, bandwidth and compute as they are known: one in three is wrong by more than that."""


def main() -> int:
    """Run what was asked for, print the tables, write the file and the pictures beside it."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that testbeds are taken down
    rows = [row for file in options.merge for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    failed: list[str] = []
    for part in _wanted(options):
        rows += _run(part, options, failed)
    if not rows:
        print("nothing ran: " + "; ".join(failed or ["no part was asked for"]), file=sys.stderr)
        return 1
    lines = figures.summarise(rows)
    targets = figures.targets(rows, lines)
    table.show(lines, rows, targets)
    if options.json:
        envelope.write(options.json, _result(options, rows, lines, targets, failed))
        for path in plots.write(lines, options.json):
            print(path)
    return 0


def _options() -> argparse.Namespace:
    text = (package.__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stragglers", description=text)
    parser.add_argument("--quick", action="store_true", help="a few small simulations: to see that it works")
    parser.add_argument("--part", action="append", choices=PARTS, help="run this part (default: simulation)")
    for part in ("validation", "emulation"):
        flag = "--validate" if part == "validation" else "--emulation"
        parser.add_argument(
            flag, action="append_const", const=part, dest="part", help=f"the same as --part {part}"
        )
    merge_help = "start from the rows of an earlier result; without a part, run nothing"
    parser.add_argument("--merge", action="append", type=Path, default=[], metavar="FILE", help=merge_help)
    parser.add_argument("--seeds", type=int, default=20, help="networks per setup and size (default 20)")
    parser.add_argument("--trained", type=int, default=1, help="seeds of the part training (default 1)")
    parser.add_argument("--nodes", type=int, action="append", help="sizes, for training and emulation too")
    parser.add_argument("--setup", type=int, action="append", choices=SETUPS, help="setups to emulate")
    arm_help = "to train and to emulate (default: one of each policy)"
    parser.add_argument("--arm", action="append", choices=[arm.name for arm in arms.ARMS], help=arm_help)
    parser.add_argument("--partition", action="append", choices=trained.PARTITIONS, help="to train on")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--prefix", default="bst", help="prefix of the testbed's names (default bst)")
    port_help = "OpenFlow port of the testbed; REST is at +1500 and +1501 (default 6790)"
    parser.add_argument("--port", type=int, default=6790, help=port_help)
    parser.add_argument("--json", type=Path, help="where the result goes, and beside it the pictures")
    options = parser.parse_args()
    if not 1 <= options.seeds <= 900 or not 1 <= options.trained <= 900:
        parser.error(
            "--seeds and --trained must be 1 to 900: weights and curve are fitted on those from 1001"
        )
    return options


def _wanted(options: argparse.Namespace) -> list[str]:
    if options.part:
        return list(dict.fromkeys(options.part))
    return [] if options.merge else ["simulation"]


def _run(part: str, options: argparse.Namespace, failed: list[str]) -> list[Row]:
    progress = _Progress(part)
    seeds = range(options.seed, options.seed + options.seeds)
    if part in ("validation", "emulation"):
        return _on_testbeds(part, options, progress, failed)
    if options.quick:
        found = list(sweep.cases((1,), (12, 16), range(options.seed, options.seed + 2)))
        return sweep.sweep(found, arms.ARMS, processes=1, progress=progress.count)
    if part == "training":
        found = list(
            sweep.cases((1,), options.nodes or ENDS, range(options.seed, options.seed + options.trained))
        )
        return trained.train(
            found,
            _chosen(options),
            options.partition or trained.PARTITIONS,
            processes=options.processes,
            progress=progress.count,
        )
    if part == "sensitivity":
        found = [
            *sweep.cases(SETUPS, ENDS, seeds, congestion_control="cubic"),
            *sweep.cases(SETUPS, ENDS, seeds, rate_floor_bps=FLOOR_OF_TESTBED_BPS),
            *sweep.cases(SETUPS, ENDS, seeds, error=LARGE_ERROR),
        ]
    else:
        found = list(sweep.cases(SETUPS, options.nodes or NODES, seeds))
    return sweep.sweep(found, arms.ARMS, processes=options.processes, progress=progress.count)


def _on_testbeds(part: str, options: argparse.Namespace, progress: _Progress, failed: list[str]) -> list[Row]:
    """Run one testbed after another; one that cannot be run is told, and does not end the others."""
    runs: list[tuple[str, Callable[[], list[Row]]]] = []
    place = {"prefix": options.prefix, "port": options.port}
    for setup in options.setup or SETUPS:
        if part == "validation":
            asked = validation.scenario(setup, seed=options.seed + setup, **place)
            runs.append((asked.name, partial(validation.measure, asked, progress.say)))
            continue
        for nodes in options.nodes or ENDS:
            asked = emulated.scenario(setup, nodes, seed=options.seed, **place)
            runs.append((asked.name, partial(emulated.run, asked, _chosen(options), progress.say)))
    rows: list[Row] = []
    for name, run in runs:
        try:
            rows += run()
        except (TopologyError, RuntimeError, OSError) as error:
            failed.append(f"{name}: {error}")
            progress.say(f"failed: {error}")
    return rows


def _chosen(options: argparse.Namespace) -> list[arms.Arm]:
    if not options.arm:
        return list(arms.POLICIES)
    return [arm for arm in arms.ARMS if arm.name in options.arm]


class _Progress:
    """Tells on stderr how far a part is."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._began = time.monotonic()
        self._console = Console(stderr=True)

    def say(self, text: str) -> None:
        after_s = time.monotonic() - self._began
        self._console.print(f"{after_s:7.1f} s  {self._part}  {text}", highlight=False)

    def count(self, done: int, of: int) -> None:
        if done == of or done % max(1, of // 20) == 0:
            self.say(f"{done} of {of}")


def _result(
    options: argparse.Namespace,
    rows: list[Row],
    lines: list[Row],
    targets: list[envelope.Target],
    failed: list[str],
) -> dict[str, Any]:
    return {
        "command": " ".join(["python -m benchmarks.stragglers", *sys.argv[1:]]),
        "seed": options.seed,
        "commit": envelope.commit(),
        "machine": envelope.machine(),
        "profile": {
            "simulation": {
                "epochs": sweep.EPOCHS,
                "model_bytes": sweep.MODEL_BYTES,
                "data_bytes": sweep.DATA_BYTES,
                "bytes_per_token": sweep.BYTES_PER_TOKEN,
                "flops_per_power": sweep.FLOPS_PER_POWER,
                "rate_floor_bps": sweep.RATE_FLOOR_BPS,
                "measurement_errors": asdict(Measuring()),
                "reduction": "median over seeds of 1 - completion / completion of `all` on the same seed",
                "loss": "each row says where from: a fitted curve, or real training at small scale",
            },
            "arms": [arm.to_json() for arm in arms.ARMS],
            "curve": asdict(CURVE),
            "weights": asdict(FITTED_WEIGHTS),
            "fitted": RECORD,
            "emulation": "rows carry the testbed's profile, congestion control and lateness",
        },
        "lines": lines,
        "targets": [target.to_json() for target in targets],
        "failed": failed,
        "rows": rows,
    }


if __name__ == "__main__":
    raise SystemExit(main())
