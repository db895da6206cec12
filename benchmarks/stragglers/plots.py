"""Completion over nodes and loss per epoch, in the manner of Pekel 2025, Figs. 2 and 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.stragglers import arms
from benchmarks.stragglers.figures import is_main
from demo import style

Row = dict[str, Any]

STYLES: dict[str, tuple[str, str, str]] = {
    arms.ALL.name: ("#8a94a3", "o", "all resources"),
    arms.RANDOM.name: ("#c9822b", "v", "random elimination"),
    arms.PRINTED.name: ("#b3372f", "x", "elimination, score as printed"),
    arms.EUCLIDEAN.name: ("#5aa9c9", "s", "elimination, equal weights"),
    arms.FITTED.name: ("#0b6e99", "D", "elimination, fitted weights"),
    arms.DEADLINE.name: ("#7a5fa8", "^", "deadline"),
    arms.OORT.name: ("#4d8f58", "P", "Oort"),
    arms.PLAN.name: ("#111827", "*", "plan"),
}

style.apply()


def write(lines: Sequence[Row], json_path: Path) -> list[Path]:
    """Write the pictures that the lines can fill beside `json_path`; returns them."""
    made = []
    simulated = [line for line in lines if line["where"] == "simulation" and is_main(line)]
    if len({line["nodes"] for line in simulated}) > 1:
        made.append(_completion(simulated, json_path.with_suffix(".completion.png")))
    trained = [line for line in lines if line["where"] == "simulation, trained"]
    for where, found in (("trained", trained), ("simulation", simulated)):
        if found:
            made.append(_loss(found, json_path.with_suffix(f".loss-{where}.png"), where))
    return made


def _completion(lines: Sequence[Row], path: Path) -> Path:
    """Draw total completion times over the number of nodes, one panel per setup (Fig. 2)."""
    setups = sorted({line["setup"] for line in lines})
    figure, panels = plt.subplots(
        1, len(setups), figsize=(4.6 * len(setups), 4.4), squeeze=False, sharey=True
    )
    for axes, setup in zip(panels[0], setups, strict=True):
        for name, (colour, marker, label) in STYLES.items():
            mine = sorted(
                (line for line in lines if line["setup"] == setup and line["arm"] == name),
                key=lambda line: line["nodes"],
            )
            if not mine:
                continue
            nodes = [line["nodes"] for line in mine]
            hours = [line["completion_median_s"] / 3600 for line in mine]
            axes.plot(nodes, hours, color=colour, marker=marker, markersize=5, linewidth=1.4, label=label)
            low = [line["completion_p10_s"] / 3600 for line in mine]
            high = [line["completion_p90_s"] / 3600 for line in mine]
            axes.fill_between(nodes, low, high, color=colour, alpha=0.10, linewidth=0)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sorted({line["nodes"] for line in lines}))
        axes.set_title(f"setup {setup}")
        axes.set_xlabel("edge nodes")
    panels[0][0].set_ylabel("completion, hours (median; band p10 to p90)")
    _finish(figure, panels[0][0], "Total completion time, simulated: model 500 MB, data 1000 MB, 10 epochs")
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def _loss(lines: Sequence[Row], path: Path, where: str) -> Path:
    """Draw the loss after each epoch, a panel per number of nodes and partition (Fig. 3)."""
    shown = [line for line in lines if line["setup"] == 1]
    ends = {min(line["nodes"] for line in shown), max(line["nodes"] for line in shown)}
    found = {(line["partition"], line["nodes"]) for line in shown if line["nodes"] in ends}
    keys = sorted(found, key=lambda key: (key[0] != "equal", key[1]))
    figure, panels = plt.subplots(1, len(keys), figsize=(4.2 * len(keys), 4.0), squeeze=False, sharey=True)
    for axes, (partition, nodes) in zip(panels[0], keys, strict=True):
        for name, (colour, marker, label) in STYLES.items():
            for line in shown:
                if (line["partition"], line["nodes"], line["arm"]) == (partition, nodes, name):
                    epochs = range(len(line["loss_per_epoch"]))
                    axes.plot(
                        epochs, line["loss_per_epoch"], color=colour, marker=marker, markersize=4, label=label
                    )
        axes.set_title(f"{nodes} nodes, {partition}")
        axes.set_xlabel("epoch")
    panels[0][0].set_ylabel("held-out loss, nats per token")
    source = "real training at small scale" if where == "trained" else "fitted curve"
    _finish(figure, panels[0][0], f"Loss per epoch, setup 1: {source}")
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def _finish(figure: Any, first: Axes, title: str) -> None:
    handles, labels = first.get_legend_handles_labels()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.tight_layout(rect=(0, 0.12, 1, 0.97))
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=9)
