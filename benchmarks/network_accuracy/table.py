"""Show the figures on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.envelope import Target

_SHOWN = (
    ("delay_error_p95_ms", "delay error p95, ms"),
    ("delay_error_p95_rel", "delay error p95, relative"),
    ("delay_error_over_allowed_p95", "delay error / allowed, p95"),
    ("link_delay_error_p95_ms", "delay error of links p95, ms"),
    ("asymmetric_link_delay_error_p95_ms", "  of an asymmetric one"),
    ("bandwidth_error_p95", "available bandwidth error p95"),
    ("bandwidth_error_p95_configured", "  capacity configured"),
    ("bandwidth_error_p95_estimated", "  capacity estimated"),
    ("capacity_estimate_error_p90", "capacity estimate error p90"),
    ("loss_error_p95_pp", "loss error p95, points"),
    ("loss_counting_limit_pp", "  of which counting alone"),
    ("loss_error_delivered_p95_pp", "  against receivers' counts"),
    ("loss_half_width_p95_pp", "loss interval half-width p95, points"),
    ("loss_interval_coverage", "loss interval coverage"),
    ("loss_interval_coverage_delivered", "  of receivers' counts"),
    ("detection_p95_s", "detection p95, s"),
    ("refresh_s", "refresh p95, s"),
    ("controller_cpu", "controller CPU, cores"),
    ("controller_cpu_read", "  everything read all the time"),
    ("switch_cpu", "Open vSwitch CPU, cores"),
    ("probe_bytes_per_s", "probes, bytes/s"),
    ("train_bytes_per_s", "packet trains, bytes/s"),
    ("emulation_lateness_p99_worst_s", "emulation late p99 worst, s"),
    ("networks", "networks"),
    ("invalid_networks", "  of them invalid"),
)


def show(figures: dict[str, dict[str, Any]], targets: Sequence[Target]) -> None:
    """Print the figures per group, the classic method beside, detection, and the targets."""
    console = Console()
    groups = {name: values for name, values in figures.items() if name != "detection"}
    columns: dict[str, dict[str, Any]] = {}
    for name, values in groups.items():
        columns[name.replace("_", " ")] = values
        if values.get("classic"):
            columns[f"{name.replace('_', ' ')}, classic"] = values["classic"]
    if columns:
        console.print(_figures_table(columns))
    if "detection" in figures:
        console.print(_detection_table(figures["detection"]))
    console.print(_target_table(targets))


def _figures_table(columns: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="Accuracy of the controller's measurements")
    table.add_column("figure")
    for name in columns:
        table.add_column(name, justify="right")
    for key, words in _SHOWN:
        table.add_row(words, *(_text(values.get(key)) for values in columns.values()))
    return table


def _detection_table(detection: dict[str, Any]) -> Table:
    table = Table(title="How soon a doubled or halved value shows")
    for name in ("change", "steps", "seen", "median, s", "p95, s", "events", "event median, s"):
        table.add_column(name, justify="left" if name == "change" else "right")
    for metric, values in detection.items():
        if isinstance(values, dict):
            table.add_row(metric, *(_text(value) for value in values.values()))
    return table


def _target_table(targets: Sequence[Target]) -> Table:
    table = Table(title="Targets")
    for name in ("target", "value", "", "limit", "met"):
        table.add_column(name, justify="left" if name == "target" else "right")
    for target in targets:
        met = "yes" if target.met else "[bold red]no[/]"
        table.add_row(target.name, _text(target.value), target.op, _text(target.limit), met)
    return table


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
