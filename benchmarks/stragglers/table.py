"""Show the figures on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.envelope import Target

Row = dict[str, Any]


def show(lines: Sequence[Row], rows: Sequence[Row], targets: Sequence[Target]) -> None:
    """Print a line per group and arm, the validation, and the targets."""
    console = Console()
    if not console.is_terminal:
        console.width = 190
    if lines:
        console.print(_figures(lines))
    validated = [row for row in rows if row["where"] == "validation"]
    if validated:
        console.print(_validation(validated))
    if targets:
        console.print(_targets(targets))


def _figures(lines: Sequence[Row]) -> Table:
    made = Table(title="Completion against all resources (medians over seeds; reductions paired by seed)")
    for column in ("where", "partition", "setup", "nodes", "arm"):
        made.add_column(column)
    for column in ("seeds", "median s", "p10", "p90", "reduction", "final loss", "vs all"):
        made.add_column(column, justify="right")
    for column in ("least", "most", "by curve", "MJ"):
        made.add_column(column, justify="right")
    for line in lines:
        control = line["congestion_control"]
        where = line["where"] if control in (None, "bbr") else f"{line['where']}, {control}"
        if line["rate_floor_bps"] is not None and line["rate_floor_bps"] > 1e6:
            where += f", floor {line['rate_floor_bps'] / 1e6:g} Mbit/s"
        if line["measurement_error"] is not None:
            where += f", measured +-{100 * line['measurement_error']:g} %"
        joules = line["energy_median_j"]
        made.add_row(
            where,
            str(line["partition"]),
            str(line["setup"]),
            str(line["nodes"]),
            line["arm"],
            str(line["seeds"]),
            f"{line['completion_median_s']:.0f}",
            f"{line['completion_p10_s']:.0f}",
            f"{line['completion_p90_s']:.0f}",
            _percent(line["reduction_median"]),
            _number(line["loss_per_epoch"][-1], 3),
            _percent(line["final_loss_difference"]),
            _percent(line["final_loss_difference_least"]),
            _percent(line["final_loss_difference_most"]),
            _percent(line["curve_final_loss_difference"]),
            "-" if joules is None else f"{joules / 1e6:.2f}",
        )
    return made


def _validation(rows: Sequence[Row]) -> Table:
    made = Table(title="The same job emulated and simulated")
    for column in ("scenario", "arm", "congestion control"):
        made.add_column(column)
    for column in ("emulated s", "simulated s", "error", "epochs", "same choices", "links kept up"):
        made.add_column(column, justify="right")
    for row in rows:
        made.add_row(
            row["scenario"],
            row["arm"],
            row["congestion_control"],
            f"{row['emulated_completion_s']:.2f}",
            f"{row['simulated_completion_s']:.2f}",
            _percent(row["completion_error"]),
            " ".join(_percent(error) for error in row["epoch_errors"]),
            "yes" if row["same_choices"] else "no",
            "yes" if row["links_kept_up"] else "NO",
        )
    return made


def _targets(targets: Sequence[Target]) -> Table:
    made = Table(title="Targets")
    for column in ("target", "value", "", "limit", "met"):
        made.add_column(column, justify="left" if column == "target" else "right")
    for target in targets:
        met = "yes" if target.met else "[bold red]no[/]"
        made.add_row(target.name, _number(target.value, 4), target.op, str(target.limit), met)
    return made


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
