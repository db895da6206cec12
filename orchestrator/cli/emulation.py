"""Commands on the emulated network: up, down, status, degrade, restore, demo."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from orchestrator.cli.output import figure, json_option, make_table, say, show
from orchestrator.errors import OrchestratorError
from scenarios import schema

ALREADY_UP, NOT_UP = 3, 4
DEFAULT_SCENARIO = "scenarios/demo.yaml"
DEFAULT_PREFIX = "ut"

prefix_option = click.option("--prefix", default=DEFAULT_PREFIX, show_default=True, help="Which testbed.")


class EmulationError(OrchestratorError):
    """The testbed could not do it; the text says why."""


def _scenario(path: str) -> schema.Scenario:
    try:
        return schema.load(path)
    except schema.ScenarioError as error:
        raise EmulationError(str(error)) from error


@click.command()
@click.argument("scenario", default=DEFAULT_SCENARIO, type=click.Path(dir_okay=False))
@json_option
def up(scenario: str, as_json: bool) -> None:
    """Start network, controller, orchestrator and workers of SCENARIO, and leave them running."""
    from topologies import testbed

    described = _scenario(scenario)
    try:
        status = testbed.up(described, scenario_path=scenario, progress=say)
    except testbed.AlreadyUp as error:
        say(f"Already up: {error.status.scenario}, since {error.status.started_at}.")
        show(error.status.to_json(), as_json=as_json, table=_status_table)
        raise SystemExit(ALREADY_UP if as_json else 0) from None
    except testbed.TestbedError as error:
        raise EmulationError(str(error)) from error
    show(status.to_json(), as_json=as_json, table=_status_table)
    if not as_json:
        _greet(status.to_json())


def _greet(status: dict[str, Any]) -> None:
    northbound, api = status["urls"]["northbound"], status["urls"]["api"]
    host = next(item["ip"] for item in status["hosts"] if item["name"] != "orch")
    click.echo(f"""
The controller's measurements:  {northbound}/northbound/v1/paths
The orchestrator:               {api}/api/v1/nodes
Its API, to read and try:       {api}/openapi
Try:
  curl -s '{northbound}/northbound/v1/paths?src=198.18.0.1&dst={host}'
  curl -s '{api}/api/v1/scores'
  curl -s {api}/api/v1/jobs -H 'content-type: application/json' -d '{{"policy": "eliminate", "epochs": 4}}'
Stop it with: make mininet-down""")


@click.command()
@click.argument("scenario", default=DEFAULT_SCENARIO, type=click.Path(dir_okay=False))
@click.option("--prefix", default=None, help="Which testbed; default: the scenario's.")
def down(scenario: str, prefix: str | None) -> None:
    """Stop exactly what `up` started, also after a crash of any part."""
    from topologies import testbed

    prefix = prefix or _scenario(scenario).network.prefix
    try:
        removed = testbed.down(prefix, progress=say)
    except testbed.TestbedError as error:
        raise EmulationError(str(error)) from error
    for thing in removed:
        click.echo(f"removed {thing}")
    if not removed:
        click.echo(f"Nothing of testbed {prefix} was there.")


@click.command()
@prefix_option
@json_option
def status(prefix: str, as_json: bool) -> None:
    """Show what is running: processes, links as configured, how well the emulation keeps up."""
    client = _client(prefix)
    show(client.status().to_json(), as_json=as_json, table=_status_table)
    if not as_json:
        lateness = client.emulation()
        click.echo(
            f"Emulation ({lateness['backend']}): delivered p50 {figure(lateness['lateness_p50_s'], 1e3, 2)}, "
            f"p99 {figure(lateness['lateness_p99_s'], 1e3, 2)} ms after due; kept up: {lateness['kept_up']}"
        )


def _client(prefix: str) -> Any:
    from topologies import testbed

    if testbed.status(prefix) is None:
        click.echo(f"utopia: testbed {prefix} is not up; start it with: utopia up", err=True)
        raise SystemExit(NOT_UP)
    return testbed.Client(prefix)


def _status_table(status: dict[str, Any]) -> Table:
    def row(link: dict[str, Any]) -> tuple[str, ...]:
        now = link["current"]["a_to_b"]
        return (
            link["name"],
            figure(now["rate_bps"], 1e-6, 2),
            figure(now["delay_s"], 1e3),
            figure(now["loss_ratio"], 100, 2),
        )

    title = f"Links of {status['scenario']} (prefix {status['prefix']})"
    return make_table(title, ("link", "Mbit/s", "delay ms", "loss %"), map(row, status["links"]))


@click.command()
@click.argument("link")
@click.option("--direction", default=None, help="For one direction only, such as h3>g1.")
@click.option("--delay", "delay_s", type=click.FloatRange(min=0), help="One-way delay, seconds.")
@click.option("--rate", "rate_bps", type=click.FloatRange(min=0, min_open=True), help="Bandwidth, bit/s.")
@click.option("--loss", "loss_ratio", type=click.FloatRange(min=0, max=1), help="Loss ratio, 0 to 1.")
@prefix_option
def degrade(
    link: str,
    direction: str | None,
    delay_s: float | None,
    rate_bps: float | None,
    loss_ratio: float | None,
    prefix: str,
) -> None:
    """Change the values of LINK (such as h3-g1) while everything runs."""
    from topologies import testbed

    if delay_s is None and rate_bps is None and loss_ratio is None:
        raise click.UsageError("say what to change: --delay, --rate or --loss")
    client = _client(prefix)
    try:
        client.degrade(link, direction, delay_s=delay_s, rate_bps=rate_bps, loss_ratio=loss_ratio)
    except testbed.TestbedError as error:
        raise EmulationError(str(error)) from error
    click.echo(f"{link} is changed; `utopia restore {link}` undoes it")


@click.command()
@click.argument("link")
@prefix_option
def restore(link: str, prefix: str) -> None:
    """Give LINK its configured values again."""
    from topologies import testbed

    try:
        _client(prefix).restore(link)
    except testbed.TestbedError as error:
        raise EmulationError(str(error)) from error
    click.echo(f"{link} is as configured again")


@click.command()
@click.argument("scenario", default=DEFAULT_SCENARIO, type=click.Path(dir_okay=False))
@click.option(
    "--json", "json_path", default="results/demo.json", show_default=True, help="Where the figures go."
)
def demo(scenario: str, json_path: str) -> None:
    """Run the main job of SCENARIO: measure, fine-tune, split, degrade, report, take down."""
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
