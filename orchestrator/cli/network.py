"""Commands that talk to the controller: links, steer, pins, unpin."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.console import Group, RenderableType

from orchestrator.cli.emulation import EmulationError, explained, prefix_option
from orchestrator.cli.output import figure, json_option, make_table, show
from orchestrator.client import Client
from orchestrator.errors import OrchestratorError

BASE = "/northbound/v1"
OBJECTIVES = ("delay", "available_bandwidth", "loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """A controller to talk to, and what the hosts behind it are called."""

    client: Client
    addresses: dict[str, str]
    switches: dict[str, str]
    """Names by datapath id."""

    def address(self, host: str) -> str:
        """Return the address of a host of the testbed; anything else is taken for an address."""
        return self.addresses.get(host, host)

    def name(self, end: str) -> str:
        """Return the name of an address, if it has one."""
        return next((name for name, address in self.addresses.items() if address == end), end)

    def link(self, link_id: str) -> str:
        """Return a link's id with names in it: `c1.3-g1.1`, `h3-g1.4`."""
        return "-".join(self._end(end) for end in link_id.split("-"))

    def _end(self, end: str) -> str:
        dpid, _, port = end.partition(".")
        return f"{self.switches[dpid]}.{port}" if dpid in self.switches else self.name(end)

    def dpid(self, switch: str) -> str:
        """Return the datapath id of a switch by its name; anything else is taken for an id."""
        return next((dpid for dpid, name in self.switches.items() if name == switch), switch)


def controller_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which controller is meant."""
    for option in (
        prefix_option,
        click.option(
            "--token-file",
            envvar="UTOPIA_CONTROLLER_TOKEN_FILE",
            type=click.Path(exists=True, dir_okay=False),
            help="Holds the controller's token.  [default: the testbed's]",
        ),
        click.option(
            "--controller",
            "url",
            envvar="UTOPIA_CONTROLLER",
            help="The controller's REST API.  [default: the testbed's]",
        ),
    ):
        command = option(command)
    return command


def _controller(url: str | None, token_file: str | None, prefix: str) -> Controller:
    """Return the controller at `url`, or that of the testbed."""
    from topologies import controller_token, testbed

    addresses: dict[str, str] = {}
    token = None if token_file is None else _read_token(Path(token_file))
    if url is None:
        with explained():
            status = testbed.status(prefix)
        if status is None or "northbound" not in status.urls:
            raise EmulationError(
                f"testbed {prefix} is not up with its controller; start it with `utopia up`, or name a "
                "controller with --controller URL"
            )
        url = status.urls["northbound"]
        addresses = {str(host["name"]): str(host["ip"]) for host in status.hosts}
        if token is None and os.access(controller_token.path(prefix), os.R_OK):
            token = _read_token(controller_token.path(prefix))
    client = Client(url, server="controller", token=token)
    switches = client.get(f"{BASE}/topology")["switches"]
    return Controller(
        client=client,
        addresses=addresses,
        switches={item["dpid"]: item["name"].removeprefix(f"{prefix}-") or item["dpid"] for item in switches},
    )


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OrchestratorError(f"token file {path} cannot be read: {error}") from error


@click.command()
@controller_options
@json_option
def links(url: str | None, token_file: str | None, prefix: str, as_json: bool) -> None:
    """Show what the controller measures of every link, each direction by itself."""
    controller = _controller(url, token_file, prefix)
    answer = controller.client.get(f"{BASE}/links")
    show(answer, as_json=as_json, view=lambda found: _links_table(controller, found["links"]))


def _links_table(controller: Controller, found: list[dict[str, Any]]) -> RenderableType:
    def row(link: dict[str, Any]) -> tuple[str, ...]:
        loss = link["loss_ratio"]
        return (
            controller.link(link["id"]),
            figure(link["delay_s"]["value"], 1e3),
            figure(link["jitter_s"]["value"], 1e3, 2),
            figure(loss["value"], 100, 2),
            "" if loss["low"] is None else f"{loss['low']:.2%} – {loss['high']:.2%}",
            figure(link["capacity_bps"]["value"], 1e-6, 2),
            figure(link["used_bps"]["value"], 1e-6, 2),
            figure(link["available_bps"]["value"], 1e-6, 2),
            figure(link["delay_s"]["age_s"]),
        )

    columns = (
        "link", "delay ms", "jitter ms", "loss %", "95 % interval", "capacity Mbit/s", "used Mbit/s",
        "available Mbit/s", "age s",
    )  # fmt: skip
    return make_table("Links as the controller measures them", columns, map(row, found))


@click.command()
@click.argument("src")
@click.argument("dst")
@click.option("--by", type=click.Choice(OBJECTIVES), multiple=True, help="Objective; several weigh the same.")
@click.option("--over", help="Explicit path: switches (or ids of links between them), with commas between.")
@click.option("--both", is_flag=True, help="The way back too.")
@click.option("--tcp", "tcp_port", type=click.IntRange(1, 65535), help="Only TCP to this port of DST.")
@click.option("--udp", "udp_port", type=click.IntRange(1, 65535), help="Only UDP to this port of DST.")
@click.option("--dscp", type=click.IntRange(0, 63), help="Only packets with this DSCP.")
@click.option("-k", "--alternatives", default=3, show_default=True, type=click.IntRange(1, 16))
@click.option("--preview", is_flag=True, help="Compare only, pin nothing.")
@controller_options
@json_option
def steer(
    src: str,
    dst: str,
    by: tuple[str, ...],
    over: str | None,
    both: bool,
    tcp_port: int | None,
    udp_port: int | None,
    dscp: int | None,
    alternatives: int,
    preview: bool,
    url: str | None,
    token_file: str | None,
    prefix: str,
    as_json: bool,
) -> None:
    """Lead traffic from SRC to DST over the best path by an objective, or over an explicit one.

    SRC and DST are hosts of the testbed or addresses. The pin holds until `utopia unpin`.
    """
    if bool(by) == bool(over):
        raise click.UsageError("say either --by OBJECTIVE or --over PATH")
    if tcp_port is not None and udp_port is not None:
        raise click.UsageError("say --tcp or --udp, not both")
    controller = _controller(url, token_file, prefix)
    wish: dict[str, Any] = {
        "src": controller.address(src),
        "dst": controller.address(dst),
        "both_directions": both,
        "k": alternatives,
    }
    traffic_class = _traffic_class(tcp_port, udp_port, dscp)
    if traffic_class:
        wish["traffic_class"] = traffic_class
    if over:
        wish["path"] = [controller.dpid(part.strip()) for part in over.split(",")]
    else:
        wish["objective"] = by[0] if len(by) == 1 else dict.fromkeys(by, 1.0)
    if preview:
        wish["preview"] = True
    answer = controller.client.post(f"{BASE}/paths", wish)
    show(answer, as_json=as_json, view=lambda pin: _pin_view(controller, pin))


def _traffic_class(tcp_port: int | None, udp_port: int | None, dscp: int | None) -> dict[str, Any]:
    port = tcp_port if tcp_port is not None else udp_port
    named: dict[str, Any] = {}
    if port is not None:
        named = {"protocol": "tcp" if tcp_port is not None else "udp", "dst_port": port}
    return named if dscp is None else {**named, "dscp": dscp}


def _pin_view(controller: Controller, pin: dict[str, Any]) -> RenderableType:
    parts = []
    for direction in pin["directions"]:
        title = f"{controller.name(direction['src'])} to {controller.name(direction['dst'])}"
        notes = [direction["explanation"]] if "explanation" in direction else []
        parts.append(_alternatives(controller, title, direction.get("alternatives", []), notes))
    closing = [] if "id" not in pin else [f"{pin['id']} is {pin['state']}; undo it: utopia unpin {pin['id']}"]
    return Group(*parts, *closing)


def _alternatives(
    controller: Controller, title: str, found: list[dict[str, Any]], notes: list[str]
) -> RenderableType:
    def row(way: dict[str, Any]) -> tuple[str, ...]:
        return (
            f"{'→' if way['chosen'] else ' '} {way['rank']}",
            figure(way["delay_s"]["value"], 1e3),
            figure(way["loss_ratio"]["value"], 100, 2),
            figure(way["available_bps"]["value"], 1e-6, 2),
            _passed(controller, way["links"]),
            way["why"],
        )

    columns = ("path", "delay ms", "loss %", "available Mbit/s", "over", "why")
    return make_table(title, columns, map(row, found), notes=notes, texts=("over", "why"))


def _passed(controller: Controller, link_ids: list[str]) -> str:
    """Return the switches that a path passes."""
    return " ".join(controller.link(link_id).split("-")[1].rpartition(".")[0] for link_id in link_ids[:-1])


@click.command()
@controller_options
@json_option
def pins(url: str | None, token_file: str | None, prefix: str, as_json: bool) -> None:
    """List what is steered, and whether it is where it should be."""
    controller = _controller(url, token_file, prefix)
    answer = controller.client.get(f"{BASE}/pins")
    show(answer, as_json=as_json, view=lambda found: _pins_table(controller, found["pins"]))


def _pins_table(controller: Controller, found: list[dict[str, Any]]) -> RenderableType:
    def row(pin: dict[str, Any]) -> tuple[str, ...]:
        wanted = pin["path"] or list(pin["objective"] or ())
        named = " ".join(f"{name} {value}" for name, value in (pin["traffic_class"] or {}).items())
        return (
            pin["id"],
            f"{controller.name(pin['src'])} {'↔' if pin['both_directions'] else '→'} "
            f"{controller.name(pin['dst'])}",
            named or "all",
            "explicit path" if pin["path"] else ", ".join(wanted),
            pin["state"],
            "; ".join(item["explanation"] for item in pin["directions"]),
        )

    columns = ("pin", "pair", "traffic", "by", "state", "why")
    return make_table(f"{len(found)} pins", columns, map(row, found), texts=columns)


@click.command()
@click.argument("pin")
@controller_options
def unpin(pin: str, url: str | None, token_file: str | None, prefix: str) -> None:
    """Let what PIN steers take its default path again."""
    _controller(url, token_file, prefix).client.delete(f"{BASE}/paths/{quote(pin, safe='')}")
    click.echo(f"{pin} is gone; its traffic takes the default path again.")


COMMANDS = (links, steer, pins, unpin)
