"""How the command line shows things: tables and progress for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def say(text: str) -> None:
    """Tell the person at the terminal what is going on; never part of the result."""
    stderr.print(text, markup=False, soft_wrap=True)


def show(value: Any, *, as_json: bool, table: Callable[[Any], Table]) -> None:
    """Print a result as JSON or as the table that `table` makes of it."""
    if as_json:
        click.echo(json.dumps(value, indent=1))
    else:
        stdout.print(table(value))


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table whose first column is text and whose others are figures."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made


def figure(value: float | None, unit: float = 1.0, digits: int = 1) -> str:
    """Return a figure in a unit, or a dash for the unknown."""
    return "–" if value is None else f"{value * unit:.{digits}f}"
