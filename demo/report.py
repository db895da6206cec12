"""The demo's report: one HTML file with the figures, the plots and every decision, readable offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from demo import plots

_PICTURES = {
    "agreement": plots.measured_against_configured,
    "loss": plots.loss_and_time,
    "scores": plots.scores_over_epochs,
    "network": plots.network_and_placement,
    "tokens": plots.token_times,
}


def render(result: Mapping[str, Any]) -> str:
    """Return the report of a demo's result (the content of `results/demo.json`) as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("demo", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(milli=_milli, mega=_mega, percent=_percent, seconds=_seconds)
    pictures = {
        name: plots.as_image(draw, result) for name, draw in _PICTURES.items() if _can_draw(name, result)
    }
    return environment.get_template("report.html.j2").render(result=result, pictures=pictures)


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write the report beside its result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(result), encoding="utf-8")


def _can_draw(name: str, result: Mapping[str, Any]) -> bool:
    return name != "scores" or "eliminate" in result["finetune"]


def _milli(value: float | None) -> str:
    return "unknown" if value is None else f"{value * 1e3:.1f}"


def _mega(value: float | None) -> str:
    return "unknown" if value is None else f"{value / 1e6:.2f}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value * 100:.1f} %"


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"
