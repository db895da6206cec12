"""Run from the command line; exit 0 when it ran, whether targets are met or not."""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

import benchmarks.network_accuracy as package
from benchmarks import envelope
from benchmarks.network_accuracy import detection, figures, phases, plan, table
from benchmarks.network_accuracy.world import running
from topologies.errors import TopologyError

Row = dict[str, Any]


def main() -> int:
    """Measure what was asked for, print the table, write the file."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that testbeds are taken down
    began = time.monotonic()
    rows, profile = _merged(options.merge) if options.merge else ([], {})
    failed: list[str] = []
    for part in _wanted(options):
        profile[part.name] = plan.profile(part)
        for number in range(part.networks):
            rows += _network(part, number, options, began, failed)
    if not rows:
        print("nothing was measured: " + "; ".join(failed or ["no part was asked for"]), file=sys.stderr)
        return 1
    found = figures.compute(rows)
    made = figures.targets(found)
    table.show(found, made)
    if options.json:
        envelope.write(options.json, _result(options, profile, rows, found, made, failed))
    return 0


def _options() -> argparse.Namespace:
    text = (package.__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network_accuracy", description=text)
    names = list(plan.parts(networks=1, larger=1, idle_s=1, loaded_s=1, detecting=1))
    parser.add_argument("--quick", action="store_true", help="one small network: to see that it works")
    parser.add_argument("--part", action="append", choices=names, help="run this part (default: all)")
    merge_help = "start from the rows of an earlier result; without --part, run nothing"
    parser.add_argument("--merge", action="append", type=Path, default=[], metavar="FILE", help=merge_help)
    parser.add_argument("--networks", type=int, default=10, help="networks of 12 hosts (default 10)")
    parser.add_argument("--larger", type=int, default=3, help="networks of 40 hosts (default 3)")
    parser.add_argument("--detecting", type=int, default=3, help="networks with steps (default 3)")
    parser.add_argument("--idle-s", type=float, default=66.0, help="length of an idle phase (default 66)")
    parser.add_argument("--loaded-s", type=float, default=30.0, help="length of a loaded phase (default 30)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prefix", default="bna", help="prefix of the testbed's names (default bna)")
    port_help = "OpenFlow port; REST is at +1400, +1500, the classic method's at +1 (default 6760)"
    parser.add_argument("--port", type=int, default=6760, help=port_help)
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    if not all(1 <= number <= 1000 for number in (options.networks, options.larger)):
        parser.error("--networks and --larger must be 1 to 1000")
    if not 0 <= options.detecting <= 1000:
        parser.error("--detecting must be 0 to 1000")
    return options


def _wanted(options: argparse.Namespace) -> list[plan.Part]:
    if options.quick:
        return list(plan.quick().values())
    parts = plan.parts(
        networks=options.networks,
        larger=options.larger,
        idle_s=options.idle_s,
        loaded_s=options.loaded_s,
        detecting=options.detecting,
    )
    if options.part:
        return [parts[name] for name in options.part]
    return [] if options.merge else list(parts.values())


def _network(
    part: plan.Part, number: int, options: argparse.Namespace, began: float, failed: list[str]
) -> list[Row]:
    """Measure one network; one that cannot be measured is told, and does not end the others."""
    port = options.port
    place = plan.Place(
        prefix=options.prefix, openflow_port=port, northbound_port=port + 1400, api_port=port + 1500
    )
    scenario = plan.scenario(part, number, seed=options.seed, place=place)
    console = Console(stderr=True)

    def progress(text: str) -> None:
        console.print(f"{time.monotonic() - began:7.1f} s  {part.name} {number + 1}/{part.networks}  {text}")

    try:
        with running(part, scenario, progress) as world:
            rows = phases.measure(world, progress)
            if part.detect:
                rows += detection.measure(world, progress, thorough=not options.quick)
            return rows
    except (TopologyError, RuntimeError, OSError) as error:
        failed.append(f"{scenario.name}: {error}")
        progress(f"failed: {error}")
        return []


def _merged(files: list[Path]) -> tuple[list[Row], dict[str, Any]]:
    rows: list[Row] = []
    profile: dict[str, Any] = {}
    for file in files:
        document = json.loads(file.read_text(encoding="utf-8"))
        rows += document["rows"]
        profile |= document["profile"]["parts"]
    return rows, profile


def _result(
    options: argparse.Namespace,
    profile: dict[str, Any],
    rows: list[Row],
    found: dict[str, Any],
    made: list[envelope.Target],
    failed: list[str],
) -> dict[str, Any]:
    reported = [row["reported"] for row in rows if row["kind"] == "host_counters"]
    return {
        "command": " ".join(["python -m benchmarks.network_accuracy", *sys.argv[1:]]),
        "seed": options.seed,
        "commit": envelope.commit(),
        "machine": envelope.machine(),
        "profile": {
            "parts": profile,
            "congestion_control": _congestion_control(),
            "system": platform.platform(),
            "ping_interval_s": 0.2,
            "background_udp_pps_each_way": plan.PPS,
            "host_counters": (
                "this benchmark plays the hosts' agents: it reads their interfaces' counters and tells the "
                "controller twice a second, as workers and orchestrator do"
                if reported and all(reported)
                else "the controller takes no host counters"
            ),
            "classic_method": "a second controller of the same switches, at the same time; its probe is "
            "IPv4, since the emulator delays nothing else",
        },
        "figures": found,
        "targets": [target.to_json() for target in made],
        "failed_networks": failed,
        "rows": rows,
    }


def _congestion_control() -> str:
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text(encoding="ascii").strip()


if __name__ == "__main__":
    raise SystemExit(main())
