"""The command line: `utopia`.

Exit codes: 0 done, 1 it failed (the reason is on stderr), 2 wrong usage, 4 the testbed is not up,
130 interrupted.
"""

from __future__ import annotations

import logging
import sys

import click

from orchestrator.cli import emulation, network, work
from orchestrator.errors import OrchestratorError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to stderr.")
def cli(verbose: bool) -> None:
    """Orchestrate AI on unequal, changing edge networks, on what the SDN controller measures."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


@cli.command()
@click.option(
    "--config", required=True, type=click.Path(exists=True, dir_okay=False), help="JSON configuration."
)
@click.option("--abandon", is_flag=True, help="End what an earlier run left, do not go on with it.")
def serve(config: str, abandon: bool) -> None:
    """Run the orchestrator process in the foreground; jobs and deployments that were cut short go on."""
    from orchestrator import serve as process

    raise SystemExit(process.main(config, resume=not abandon))


for command in (*emulation.COMMANDS, *network.COMMANDS, *work.COMMANDS):
    cli.add_command(command)


def main() -> None:
    """Run the command line; a known error is one message on stderr and exit code 1."""
    try:
        cli()
    except OrchestratorError as error:
        click.echo(f"utopia: {error}", err=True)
        raise SystemExit(1) from None
