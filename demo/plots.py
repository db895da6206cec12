"""The pictures of the demo's report: each takes the result as it stands in `results/demo.json`."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from demo import style
from demo.style import GRID, INK, MUTED, WARNING

Result = Mapping[str, Any]

POLICY_COLOURS = {"all": "#8a94a3", "eliminate": "#0b6e99", "random": "#c9822b"}
POLICY_NAMES = {"all": "all resources", "eliminate": "node elimination", "random": "random elimination"}
BEFORE, AFTER = "#c9822b", "#0b6e99"

style.apply()


def as_image(draw: Callable[[Result], Figure], result: Result) -> str:
    """Return the figure that `draw` makes of the result as an `<img>` source (PNG in a data URL)."""
    figure = draw(result)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def measured_against_configured(result: Result) -> Figure:
    """Draw each path's measured delay and bandwidth over the configured one, with a 20 % band."""
    figure, (delay, rate) = plt.subplots(1, 2, figsize=(10, 4.2))
    rows = result["measured"]
    _agreement(delay, rows, "delay_s", "delay_s", 1e3, "delay, ms (one way, orchestrator to node)")
    _agreement(rate, rows, "rate_bps", "capacity_bps", 1e-6, "bandwidth, Mbit/s")
    figure.tight_layout()
    return figure


def _agreement(
    axes: Axes, rows: Sequence[Any], configured: str, measured: str, unit: float, name: str
) -> None:
    points = [
        (row["configured"][configured] * unit, row["measured"][measured] * unit, row["node"])
        for row in rows
        if row["measured"][measured] is not None
    ]
    top = 1.15 * max((max(x, y) for x, y, _ in points), default=1.0)
    line = np.array([0.0, top])
    axes.fill_between(line, 0.8 * line, 1.2 * line, color=GRID, label="within 20 %")
    axes.plot(line, line, color=MUTED, linewidth=1)
    for x, y, node in points:
        axes.plot(x, y, "o", color=AFTER, markersize=5)
        axes.annotate(node, (x, y), xytext=(5, -3), textcoords="offset points", fontsize=8, color=MUTED)
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="configured", ylabel="measured", title=name)
    axes.legend(loc="upper left")


def loss_and_time(result: Result) -> Figure:
    """Draw held-out loss over epochs and over time, and seconds per epoch, for every policy."""
    figure, (by_epoch, by_time, seconds) = plt.subplots(1, 3, figsize=(13, 4))
    runs = result["finetune"]
    for index, (policy, run) in enumerate(runs.items()):
        style = {"color": POLICY_COLOURS.get(policy, INK), "label": POLICY_NAMES.get(policy, policy)}
        losses = [run["start_loss"], *(epoch["loss"] for epoch in run["epochs"])]
        ends = [0.0, *(epoch["ended_s"] for epoch in run["epochs"])]
        by_epoch.plot(range(len(losses)), losses, marker="o", markersize=4, **style)
        by_time.plot(ends, losses, marker="o", markersize=4, **style)
        width = 0.8 / len(runs)
        places = np.arange(1, len(run["epochs"]) + 1) + (index - (len(runs) - 1) / 2) * width
        seconds.bar(places, [epoch["seconds"] for epoch in run["epochs"]], width=width * 0.92, **style)
    by_epoch.set(title="Loss per epoch", xlabel="epoch", ylabel="held-out loss, nats per token")
    by_time.set(title="Loss over time", xlabel="seconds since the model was sent")
    seconds.set(title="Time per epoch", xlabel="epoch", ylabel="seconds")
    seconds.grid(visible=False, axis="x")
    for axes in (by_epoch, seconds):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_epoch.legend()
    figure.tight_layout()
    return figure


def scores_over_epochs(result: Result) -> Figure:
    """Draw each node's score in each epoch of the elimination, and where it was eliminated."""
    run = result["finetune"]["eliminate"]
    nodes = sorted({node for epoch in run["epochs"] for node in epoch["scores"]}, key=_node_order)
    table = np.full((len(nodes), len(run["epochs"])), np.nan)
    for column, epoch in enumerate(run["epochs"]):
        for node, score in epoch["scores"].items():
            table[nodes.index(node), column] = np.nan if score is None else score
    figure, axes = plt.subplots(figsize=(8.5, 0.34 * len(nodes) + 1.4))
    image = axes.imshow(table, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    axes.set(
        xlabel="epoch",
        title="Score of each active node (1: the utopia point; ×: eliminated)",
    )
    axes.set_xticks(range(table.shape[1]), [str(i + 1) for i in range(table.shape[1])])
    axes.set_yticks(range(len(nodes)), nodes)
    axes.grid(visible=False)
    for (row, column), score in np.ndenumerate(table):
        if np.isfinite(score):
            gone = nodes[row] in run["epochs"][column]["eliminated"]
            text = f"{score:.2f}" + (" ×" if gone else "")
            colour = "white" if score > 0.6 else INK
            weight = "bold" if gone else "normal"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour, weight=weight)
    figure.colorbar(image, ax=axes, label="score", shrink=0.8)
    return figure


def _node_order(node: str) -> tuple[str, int]:
    return node.rstrip("0123456789"), int("0" + "".join(filter(str.isdigit, node)))


def network_and_placement(result: Result) -> Figure:
    """Draw the network with the route before and after the degradation, and the degraded link."""
    figure, axes = plt.subplots(figsize=(11, 5.6))
    places = _layout(result["network"])
    degraded = (result["inference"].get("degrade") or {}).get("link")
    for link in result["network"]["links"]:
        (x0, y0), (x1, y1) = places[link["a"]], places[link["b"]]
        bad = link["name"] == degraded
        axes.plot(
            [x0, x1], [y0, y1], color=WARNING if bad else "#c3cad3", linewidth=2.5 if bad else 1, zorder=1
        )
    _draw_nodes(axes, result, places)
    placements = result["inference"]["placements"]
    for placement, colour, bend in zip(
        (placements[0], placements[-1]), (BEFORE, AFTER), (-0.32, -0.18), strict=True
    ):
        _draw_route(axes, placement, places, colour, bend)
    handles = [
        plt.Line2D([], [], color=BEFORE, label="route before"),
        plt.Line2D([], [], color=AFTER, label="route after"),
        plt.Line2D([], [], color=WARNING, linewidth=2.5, label="degraded link"),
    ]
    axes.legend(handles=handles, loc="upper left", ncols=3)
    axes.set_axis_off()
    axes.set_ylim(-1.35, 3.6)
    return figure


def _layout(network: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Place hosts on the ground, gateways over them, the core and the orchestrator on top."""
    hosts = [host["name"] for host in network["hosts"] if host["name"] != "orch"]
    attached: dict[str, list[str]] = {}
    for link in network["links"]:
        for host, switch in ((link["a"], link["b"]), (link["b"], link["a"])):
            if host in hosts:
                attached.setdefault(switch, []).append(host)
    places: dict[str, tuple[float, float]] = {}
    column = 0
    for gateway in sorted(attached, key=_node_order):
        mine = sorted(attached[gateway], key=_node_order)
        for host in mine:
            places[host] = (column, 0.0)
            column += 1
        places[gateway] = (column - (len(mine) + 1) / 2, 1.0)
        column += 1
    cores = sorted(
        {end for link in network["links"] for end in (link["a"], link["b"])} - set(places) - {"orch"},
        key=_node_order,
    )
    for index, core in enumerate(cores):
        places[core] = ((column - 2) * (index + 1) / (len(cores) + 1), 2.2)
    places["orch"] = (places[cores[0]][0], 3.1)
    return places


def _draw_nodes(axes: Axes, result: Result, places: Mapping[str, tuple[float, float]]) -> None:
    hosts = {host["name"] for host in result["network"]["hosts"]}
    trusted = set(result["profile"]["trusted"])
    for name, (x, y) in places.items():
        marker, colour = ("o", "#dfe6ee") if name in hosts else ("s", "#9fb0c3")
        edge = "#2d7d46" if name in trusted else MUTED
        axes.plot(
            x, y, marker, markersize=20, color=colour, markeredgecolor=edge, markeredgewidth=2, zorder=3
        )
        axes.text(x, y, name, ha="center", va="center", fontsize=8, zorder=4)
    axes.text(0, -1.25, "circles: hosts (green edge: trusted), squares: switches", fontsize=8, color=MUTED)


def _draw_route(axes: Axes, placement: Any, places: Mapping[str, Any], colour: str, bend: float) -> None:
    ring = [placement["head"], *(stage["node"] for stage in placement["stages"]), placement["head"]]
    for start, end in itertools.pairwise(ring):
        if start != end:
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 11, "shrinkB": 11}
            arrow["connectionstyle"] = f"arc3,rad={bend if places[start][0] > places[end][0] else -bend}"
            axes.annotate("", places[end], places[start], arrowprops=arrow, zorder=2)
    offset = -0.42 if bend < -0.2 else -0.68
    for stage in placement["stages"]:
        x, y = places[stage["node"]]
        layers = f"{stage['first_layer']}–{stage['end_layer'] - 1}"
        axes.text(x, y + offset, layers, ha="center", fontsize=8, color=colour)


def token_times(result: Result) -> Figure:
    """Draw the time of each generated token, with the degradation, the decision and the switch marked."""
    inference = result["inference"]
    figure, axes = plt.subplots(figsize=(10, 3.6))
    tokens = [token for token in inference["token_times"] if token["index"] > 0]
    epochs = sorted({token["epoch"] for token in tokens})
    for epoch in epochs:
        mine = [token for token in tokens if token["epoch"] == epoch]
        colour = BEFORE if epoch == epochs[0] and len(epochs) > 1 else AFTER
        xs, ys = [token["at_s"] for token in mine], [token["elapsed_s"] * 1e3 for token in mine]
        axes.plot(xs, ys, ".", color=colour, label=f"route epoch {epoch}")
    for key, text in (
        ("degraded_at_s", "link degraded"),
        ("decided_at_s", "decision"),
        ("committed_at_s", "switched"),
    ):
        if inference.get(key) is not None:
            axes.axvline(inference[key], color=WARNING if key == "degraded_at_s" else MUTED, linewidth=1)
            axes.text(
                inference[key],
                1.01,
                f" {text}",
                transform=axes.get_xaxis_transform(),
                fontsize=8,
                rotation=20,
            )
    axes.set(xlabel="seconds since the request", ylabel="ms per token", yscale="log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.legend(loc="upper right")
    return figure
