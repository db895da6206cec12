"""How the command line shows things: tables and progress for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def say(text: str) -> None:
    """Tell the person at the terminal what is going on; never part of the result."""
    stderr.print(text, markup=False, soft_wrap=True)


def show(value: Any, *, as_json: bool, view: Callable[[Any], RenderableType]) -> None:
    """Print a result as JSON or as what `view` makes of it for people."""
    if as_json:
        click.echo(json.dumps(value, indent=1))
    else:
        stdout.print(view(value))


def make_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    notes: Iterable[str] = (),
    texts: Iterable[str] = (),
) -> RenderableType:
    """Return a table with a title above and notes below.

    The first column and those named in `texts` are text, the others figures.
    """
    left = {columns[0], *texts}
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="left" if column in left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return Group(Text(title, style="italic"), made, *(Text(note) for note in notes))


def figure(value: float | None, unit: float = 1.0, digits: int = 1) -> str:
    """Return a figure in a unit, or a dash for the unknown."""
    return "–" if value is None else f"{value * unit:.{digits}f}"


def timings_table(took: Mapping[str, Any]) -> RenderableType:
    """Return what an answer's `timings` say: where the time of its prompt and of its tokens went."""
    split = took["utopia"] or {}

    def row(name: str, phase: str) -> tuple[str, ...]:
        parts = split.get(phase, {})
        values = (took[f"{phase}_ms"], took[f"{phase}_per_second"])
        found = (parts.get(f"{part}_ms") for part in ("compute", "queue", "wire"))
        return (name, str(took[f"{phase}_n"]), *map(figure, (*values, *found)))

    nodes = [
        (f"on {one['node']}", "", "", "", figure(one["compute_ms"]), figure(one["queue_ms"]), "")
        for one in split.get("nodes", ())
    ]
    notes = ["Pieces of a long prompt are under way at once: its parts may add up to more."]
    notes += ["Computing is emulated on one node at least."] if split.get("emulated") else []
    columns = ("", "tokens", "ms", "tokens/s", "compute ms", "queue ms", "wire ms")
    rows = [row("prompt", "prompt"), row("answer", "predicted"), *nodes]
    return make_table("Where the time went", columns, rows, notes=notes)
