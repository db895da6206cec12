"""Commands on the emulated network: up, down, status, degrade, restore, demo."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import RenderableType

from orchestrator.cli.output import figure, json_option, make_table, say, show
from orchestrator.errors import OrchestratorError
from scenarios import schema

NOT_UP = 4
DEFAULT_SCENARIO = "scenarios/demo.yaml"
DEFAULT_PREFIX = "ut"

prefix_option = click.option(
    "--prefix",
    default=DEFAULT_PREFIX,
    envvar="UTOPIA_PREFIX",
    show_default=True,
    help="Which testbed: network.prefix of its scenario.",
)


class EmulationError(OrchestratorError):
    """The testbed could not do it; the text says why."""


class _Finite(click.FloatRange):
    """A finite number within a range: `nan` and `inf` are neither small nor large enough."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def _scenario(path: str) -> schema.Scenario:
    try:
        return schema.load(path)
    except schema.ScenarioError as error:
        raise EmulationError(str(error)) from error


@contextmanager
def explained() -> Iterator[None]:
    """Turn the testbed's errors into the command line's."""
    from topologies import testbed

    try:
        yield
    except testbed.TestbedError as error:
        raise EmulationError(str(error)) from error


@click.command()
@click.argument("scenario", default=DEFAULT_SCENARIO, type=click.Path(dir_okay=False))
@json_option
def up(scenario: str, as_json: bool) -> None:
    """Start network, controller, orchestrator and workers.

    They are those of SCENARIO, and keep running until `utopia down`. One that is up already is left alone.
    """
    from topologies import testbed

    described = _scenario(scenario)
    with explained():
        try:
            found = testbed.up(described, scenario_path=scenario, progress=say).to_json()
        except testbed.AlreadyUp as error:
            found = error.status.to_json()
            say(f"Already up: {found['scenario']}, since {found['started_at']}. It is left as it is.")
    show(found, as_json=as_json, view=_status_view)
    if not as_json and found["urls"].get("api"):
        _greet(found, scenario)


def _greet(status: dict[str, Any], scenario: str) -> None:
    northbound, api = status["urls"]["northbound"], status["urls"]["api"]
    edge = [item["ip"] for item in status["hosts"] if item["name"] != "orch"]
    job = (
        f'{{"policy": "eliminate", "epochs": {min(4, len(edge) - 1)}}}'
        if len(edge) > 2
        else '{"policy": "all", "epochs": 4}'
    )
    click.echo(f"""
The controller's measurements:  {northbound}/northbound/v1/paths
The orchestrator:               {api}/api/v1/nodes
Its API, to read and try:       {api}/openapi
Try:
  curl -s '{northbound}/northbound/v1/paths?src=198.18.0.1&dst={edge[0]}'
  curl -s '{api}/api/v1/scores'
  curl -s {api}/api/v1/jobs -H 'content-type: application/json' -d '{job}'""")
    if status["prefix"] == DEFAULT_PREFIX:
        click.echo("Stop it with: make mininet-down")
    else:
        click.echo(f"""For the other commands: export UTOPIA_URL={api} UTOPIA_PREFIX={status["prefix"]}
Stop it with: make mininet-down SCENARIO={scenario}""")


@click.command()
@click.argument("scenario", required=False, type=click.Path(dir_okay=False))
@click.option("--prefix", default=None, help="Which testbed; default: SCENARIO's, UTOPIA_PREFIX, the demo's.")
@json_option
def down(scenario: str | None, prefix: str | None, as_json: bool) -> None:
    """Stop exactly what `up` started, also after a crash; --json names each thing."""
    from topologies import testbed

    if prefix is None and scenario is None:
        prefix = os.environ.get("UTOPIA_PREFIX")
    prefix = prefix or _scenario(scenario or DEFAULT_SCENARIO).network.prefix
    with explained():
        removed = testbed.down(prefix, progress=say)
    if as_json:
        click.echo(json.dumps({"removed": removed}, indent=1))
    elif removed:
        kinds = Counter(thing.partition(" ")[0] for thing in removed)
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        click.echo(f"Removed everything of testbed {prefix}: {counts}")
    else:
        click.echo(f"Nothing of testbed {prefix} was there.")


@click.command()
@prefix_option
@json_option
def status(prefix: str, as_json: bool) -> None:
    """Show what runs, what has failed, and the links now."""
    client = _client(prefix)
    with explained():
        found = {**client.status().to_json(), "emulation": client.emulation()}
    show(found, as_json=as_json, view=_status_view)


def _client(prefix: str) -> Any:
    from topologies import testbed

    if testbed.status(prefix) is None:
        click.echo(
            f"utopia: testbed {prefix} is not up; start it with `utopia up`, or name another with --prefix",
            err=True,
        )
        raise SystemExit(NOT_UP)
    return testbed.Client(prefix)


def _status_view(status: dict[str, Any]) -> RenderableType:
    workers = sum(host.get("worker_pid") is not None for host in status["hosts"])
    title = (
        f"{status['scenario']} (prefix {status['prefix']}), up since {status['started_at']}\n"
        f"{', '.join(status['stages'])}; {workers} workers; {status['datapath']} datapath, "
        f"links by {status['emulator']}, logs in {status['state_dir']}/logs"
    )
    rows = [row for link in status["links"] for row in _link_rows(link)]
    notes = [f"FAILED: {text}" for text in status["trouble"]]
    if "emulation" in status:
        notes.append(_emulation_line(status["emulation"]))
    return make_table(title, ("link", "Mbit/s", "delay ms", "loss %", ""), rows, notes=notes, texts=("",))


def _link_rows(link: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Give one row, or one per direction where they differ."""
    there, back = link["current"]["a_to_b"], link["current"]["b_to_a"]
    names = {"a_to_b": f"{link['a']}>{link['b']}", "b_to_a": f"{link['b']}>{link['a']}"}
    for direction in ("a_to_b",) if there == back else ("a_to_b", "b_to_a"):
        now = link["current"][direction]
        yield (
            link["name"] if there == back else names[direction],
            figure(now["rate_bps"], 1e-6, 2),
            figure(now["delay_s"], 1e3),
            figure(now["loss_ratio"], 100, 2),
            "" if now == link["configured"][direction] else "changed",
        )


def _emulation_line(lateness: dict[str, Any]) -> str:
    p50, p99 = (figure(lateness[name], 1e3, 2) for name in ("lateness_p50_s", "lateness_p99_s"))
    verdict = "it keeps up" if lateness["kept_up"] else "IT DOES NOT KEEP UP: figures are not to be trusted"
    return f"Emulated links deliver {p50} ms (p50), {p99} ms (p99) after due: {verdict}"


@click.command()
@click.argument("link")
@click.option("--direction", default=None, help="For one direction only, such as 'h3>g1' (quoted).")
@click.option("--delay", "delay_s", type=_Finite(min=0), help="One-way delay, seconds.")
@click.option("--rate", "rate_bps", type=_Finite(min=0, min_open=True), help="Bandwidth, bit/s.")
@click.option("--loss", "loss_ratio", type=_Finite(min=0, max=1), help="Loss ratio, 0 to 1.")
@prefix_option
def degrade(
    link: str,
    direction: str | None,
    delay_s: float | None,
    rate_bps: float | None,
    loss_ratio: float | None,
    prefix: str,
) -> None:
    """Change LINK (such as h3-g1) while everything runs."""
    if delay_s is None and rate_bps is None and loss_ratio is None:
        raise click.UsageError("say what to change: --delay, --rate or --loss")
    client = _client(prefix)
    with explained():
        client.degrade(link, direction, delay_s=delay_s, rate_bps=rate_bps, loss_ratio=loss_ratio)
    option = "" if prefix == DEFAULT_PREFIX else f" --prefix {prefix}"
    click.echo(f"{link} is changed; `utopia restore {link}{option}` undoes it")


@click.command()
@click.argument("link")
@prefix_option
def restore(link: str, prefix: str) -> None:
    """Give LINK its configured values again."""
    client = _client(prefix)
    with explained():
        client.restore(link)
    click.echo(f"{link} is as configured again")


@click.command()
@click.argument("scenario", default=DEFAULT_SCENARIO, type=click.Path(dir_okay=False))
@click.option(
    "--json", "json_path", default="results/demo.json", show_default=True, help="Where the figures go."
)
def demo(scenario: str, json_path: str) -> None:
    """Run the main job: measure, fine-tune, split, degrade, report."""
    from demo import job

    raise SystemExit(job.run(_scenario(scenario), scenario_path=scenario, json_path=json_path))


@click.command()
@click.argument("result", default="results/demo.json", type=click.Path(exists=True, dir_okay=False))
def report(result: str) -> None:
    """Make the HTML report of a demo's RESULT again."""
    import json
    from pathlib import Path

    from demo import report as reports

    path = Path(result).with_suffix(".html")
    reports.write(path, json.loads(Path(result).read_text(encoding="utf-8")))
    click.echo(str(path))


COMMANDS = (up, down, status, degrade, restore, demo, report)
