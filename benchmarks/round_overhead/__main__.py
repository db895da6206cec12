"""Run from the command line; exit 0 when it ran, whether targets are met or not."""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

import benchmarks.round_overhead as package
from benchmarks import envelope, environments, loopback
from benchmarks.round_overhead import arms, figures, model
from orchestrator.adapters.certificates import Authority

_PEERS = Path(__file__).parent / "peers"
_INSIDE = "UTOPIA_ROUND_OVERHEAD_INSIDE"
_FLOWER_CLIENT_BYTES = 1 << 30
_SPARE_BYTES = 2 << 30
_WORKERS, _QUICK_WORKERS = 12, 3
_FEW_WORKERS, _MORE_WORKERS = 4, 24
GROUPS = ("light", "flower plain", "flower tls", "memory")


def main() -> int:
    """Enter a namespace of our own, let the arms take turns, print the table, write the file."""
    options = _options()
    if os.environ.get(_INSIDE) is None:
        for peer in options.peers:
            environments.python_of(peer, options.cache, make=not options.quick, pins=_PEERS)
        return _go_inside()
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for group in options.group or GROUPS:
            plans = _plans(group, options, Path(folder), failed)
            rows += _measure(group, plans, options, Path(folder), failed)
            if rows:  # what was measured stays, should a later group be interrupted
                envelope.write(options.json, _result(options, rows, figures.targets(rows), failed))
    if not rows:
        print("nothing was measured: " + "; ".join(failed), file=sys.stderr)
        return 1
    targets = figures.targets(rows)
    _show(figures.summary(rows), targets, figures.references(rows), failed)
    return 0


def _options() -> argparse.Namespace:
    text = (package.__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round_overhead", description=text)
    quick_help = "a small model and 3 workers, no peer that is not installed: to see that it works"
    parser.add_argument("--quick", action="store_true", help=quick_help)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each arm (default 5)")
    parser.add_argument(
        "--group", action="append", choices=GROUPS, help="measure this group only; may be repeated"
    )
    parser.add_argument("--peers", nargs="*", choices=("flower", "ray"), default=["flower", "ray"])
    environments.add_cache_option(parser)
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; it must be at least 1")
    return options


def _go_inside() -> int:
    """Run this program again where there is no network but `lo`."""
    try:
        command = loopback.alone([sys.executable, "-m", package.__name__, *sys.argv[1:]])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return subprocess.run(command, env={**os.environ, _INSIDE: "1"}).returncode


def _plans(group: str, options: argparse.Namespace, folder: Path, failed: list[str]) -> list[arms.Plan]:
    """Say which arms of `group` take turns; at most one of them needs much memory."""
    quick, workers = options.quick, _QUICK_WORKERS if options.quick else _WORKERS
    if group == "memory":
        counts = (workers, 2 * workers) if quick else (_FEW_WORKERS, _WORKERS, _MORE_WORKERS)
        return [arms.ours("tls", workers=count, quick=quick) for count in counts]
    own = [arms.ours(link, workers=workers, quick=quick) for link in ("plain", "tls")]
    floor = arms.gloo(workers=workers, quick=quick)
    peer = "ray" if group == "light" else "flower"
    wanted = peer in options.peers
    python = environments.python_of(peer, options.cache, make=False, pins=_PEERS) if wanted else None
    if python is None:
        failed.append(f"{peer} is not installed or was not asked for")
    if group == "light":
        stars = [
            arms.star(workers=workers, quick=quick, certificates=c) for c in (None, _certificates(folder))
        ]
        rays = [arms.ray(python, workers=workers, quick=quick)] if python is not None else []
        return [*own, *stars, floor, *rays]
    if python is None:
        return []
    room = (psutil.virtual_memory().available - _SPARE_BYTES) // _FLOWER_CLIENT_BYTES
    clients, note = workers, None
    if room < workers:
        clients, note = max(2, int(room)), f"memory for {room} Flower clients only, all arms have as many"
        own = [arms.ours(link, workers=clients, quick=quick) for link in ("plain", "tls")]
        floor = arms.gloo(workers=clients, quick=quick)
    certificates = _certificates(folder) if group == "flower tls" else None
    flower = arms.flower(python, workers=clients, quick=quick, certificates=certificates, note=note)
    return [*own, floor, flower]


def _certificates(folder: Path) -> Path:
    place = folder / "certificates"
    Authority(place, address="127.0.0.1", now=lambda: datetime.datetime.now(datetime.UTC))
    return place


def _measure(
    group: str, plans: list[arms.Plan], options: argparse.Namespace, folder: Path, failed: list[str]
) -> list[dict[str, Any]]:
    model_bytes = model.size_bytes(quick=options.quick)
    rows = []
    with ExitStack() as stack:
        running = []
        for plan in plans:
            try:
                arm = arms.Arm(plan, log=folder / f"{group}-{plan.name}-{plan.workers}.log")
            except RuntimeError as error:
                failed.append(f"{group}: {error}")
                print(failed[-1], file=sys.stderr)
                continue
            stack.callback(arm.stop)
            running.append(arm)
        for repeat in range(1 if options.quick else options.repeats):
            for arm in list(running):
                try:
                    row = arm.round()
                except RuntimeError as error:
                    failed.append(f"{group}: {error}")
                    running.remove(arm)
                    continue
                idle = row.get("server_idle_bytes")
                grown = None if idle is None else (row["server_peak_bytes"] - idle) / model_bytes
                rows.append({"group": group, "repeat": repeat, **row, "server_model_sizes": grown})
    return rows


def _show(
    lines: list[dict[str, Any]],
    targets: list[envelope.Target],
    references: dict[str, float | None],
    failed: list[str],
) -> None:
    table = Table(title="one round: medians")
    for title in (
        "group",
        "arm",
        "workers",
        "s",
        "least-most",
        "CPU s",
        "MB on lo",
        "server peak MB",
        "models",
    ):
        table.add_column(title, justify="left" if title in ("group", "arm") else "right")
    for line in lines:
        sizes = line["server_model_sizes"]
        table.add_row(
            line["group"], line["arm"], str(line["workers"]), f"{line['wall_s']:.3f}",
            f"{line['wall_s_least']:.3f}-{line['wall_s_most']:.3f}", f"{line['cpu_s']:.2f}",
            f"{line['lo_bytes'] / 1e6:.0f}", f"{line['server_peak_bytes'] / 1e6:.0f}",
            "" if sizes is None else f"{sizes:.2f}",
        )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    for target in targets:
        value = "not measured" if target.value is None else f"{target.value:.3f}"
        verdict = "met" if target.met else "NOT met"
        console.print(f"{target.name}: {value} {target.op} {target.limit} {verdict}", highlight=False)
    for name, ratio in references.items():
        console.print(f"{name}: {'not measured' if ratio is None else f'{ratio:.3f}'}", highlight=False)
    for reason in failed:
        console.print(f"left out: {reason}", highlight=False)


def _result(
    options: argparse.Namespace, rows: list[dict[str, Any]], targets: list[envelope.Target], failed: list[str]
) -> dict[str, Any]:
    return {
        "command": " ".join(["python -m benchmarks.round_overhead", *sys.argv[1:]]),
        "seed": 0,
        "commit": envelope.commit(),
        "machine": envelope.machine(),
        "profile": {
            "emulation": "none: loopback in a network namespace with lo only, no training, no evaluation",
            "model_bytes": model.size_bytes(quick=options.quick),
            "tcp_congestion_control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
            "left_out": failed,
        },
        "rows": rows,
        "summary": figures.summary(rows),
        "references": figures.references(rows),
        "targets": [target.to_json() for target in targets],
    }


if __name__ == "__main__":
    raise SystemExit(main())
