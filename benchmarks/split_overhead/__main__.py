"""Run from the command line; exit 0 when it ran, whether targets are met or not."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import benchmarks.split_overhead as package
from benchmarks import envelope, environments
from benchmarks.split_overhead import figures

PARTS = ("single", "stages", "batch", "hop", "fairness", "networks", "correct", "compute", "wire", "clients")


def main() -> int:
    """Measure the parts asked for, print the table, write the file."""
    options = _options()
    # Before torch and numpy size their thread pools, here and in what is started.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from benchmarks.split_overhead import parts

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    rows: list[dict[str, Any]] = []
    notes: list[str] = [] if len(cores) > 1 else ["one core only: stages take turns, ratios say little"]
    with tempfile.TemporaryDirectory() as folder:
        bench = parts.Bench(Path(folder), cores, options, notes)
        for part in options.part or PARTS:
            rows += getattr(bench, part)()
            if part == "correct":
                notes += filter(None, [figures.ties(rows)])
            if part == "batch":
                notes += filter(None, [figures.attainable(rows)])
            envelope.write(options.json, _result(options, rows, notes, cores))
    _show(figures.summary(rows), figures.targets(rows), notes)
    return 0


def _options() -> argparse.Namespace:
    text = (package.__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.split_overhead", description=text)
    quick_help = "a small model and few tokens, no peer that is not installed: to see that it works"
    parser.add_argument("--quick", action="store_true", help=quick_help)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="measure this part only; may be repeated"
    )
    parser.add_argument("--pairs", type=int, default=9, help="pairs of runs of each comparison (default 9)")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and random cases")
    parser.add_argument("--cases", type=int, default=20, help="of each family of `correct` (default 20)")
    parser.add_argument("--clients", type=int, default=200, help="of the part clients (default 200)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="that the clients go on asking (default 60)"
    )
    parser.add_argument(
        "--cell",
        action="append",
        type=_cell,
        metavar="MS,MBIT,PERCENT",
        help="delay, rate, loss of each way of the link of part networks, not its 24; may be repeated",
    )
    environments.add_cache_option(parser)
    options = parser.parse_args()
    for name in ("pairs", "cases"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if not 1 <= options.clients <= 2000:
        parser.error(f"--clients is {options.clients}; it must be 1 to 2000")
    if not 1 <= options.seconds <= 600:
        parser.error(f"--seconds is {options.seconds:g}; it must be 1 to 600")
    return options


def _cell(text: str) -> tuple[float, float, float]:
    """Read `10,100,1`: delay in ms, rate in Mbit/s, loss in percent; returns s, bit/s and the ratio."""
    try:
        delay_ms, rate_mbit, loss_percent = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers, as in 10,100,1") from None
    if not (0 <= delay_ms <= 1000 and 1 <= rate_mbit <= 1000 and 0 <= loss_percent <= 20):
        raise argparse.ArgumentTypeError(f"{text!r}: 0 to 1000 ms, 1 to 1000 Mbit/s, 0 to 20 percent")
    return delay_ms / 1e3, rate_mbit * 1e6, loss_percent / 100


def _result(
    options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], notes: Sequence[str], cores: Sequence[int]
) -> dict[str, Any]:
    from benchmarks.split_overhead import model

    return {
        "command": " ".join(["python -m benchmarks.split_overhead", *sys.argv[1:]]),
        "seed": options.seed,
        "commit": envelope.commit(),
        "machine": envelope.machine(),
        "profile": {
            "emulation": "loopback and devices as they are; part networks: links emulated, see each row",
            "cores": list(cores),
            "threads_per_process": 1,
            "model": model.config(quick=options.quick),
            "tcp_congestion_control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
            "notes": list(notes),
        },
        "rows": list(rows),
        "summary": figures.summary(rows),
        "targets": [target.to_json() for target in figures.targets(rows)],
    }


def _show(
    lines: Sequence[Mapping[str, Any]], targets: Sequence[envelope.Target], notes: Sequence[str]
) -> None:
    table = Table(title="medians over runs")
    for title in ("part", "arm", "runs", "median", "least-most", "unit"):
        table.add_column(title, justify="left" if title in ("part", "arm", "unit") else "right")
    for line in lines:
        span = f"{line['least']:.1f}-{line['most']:.1f}"
        values = (line["part"], line["arm"], str(line["runs"]), f"{line['median']:.1f}", span, line["unit"])
        table.add_row(*values)
    console = Console(width=110)
    console.print(table)
    for target in targets:
        value = "not measured" if target.value is None else f"{target.value:.3f}"
        verdict = "met" if target.met else "NOT met"
        console.print(f"{target.name}: {value} {target.op} {target.limit} {verdict}", highlight=False)
    for note in notes:
        console.print(f"note: {note}", highlight=False)


if __name__ == "__main__":
    raise SystemExit(main())
