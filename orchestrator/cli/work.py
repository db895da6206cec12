"""Commands on the orchestrator's work: nodes, network, scores, finetune, deploy, generate, explain."""

from __future__ import annotations

from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator.cli.output import figure, json_option, make_table, say, show, stderr
from orchestrator.client import ApiError, Client

DEFAULT_URL = "http://127.0.0.1:8181"
DEPLOY_TIMEOUT_S = 180.0

url_option = click.option(
    "--url", default=DEFAULT_URL, envvar="UTOPIA_URL", show_default=True, help="The orchestrator's REST API."
)


@click.command()
@url_option
@json_option
def nodes(url: str, as_json: bool) -> None:
    """List the nodes: alive or not, trusted or not, what they are and do."""
    show(Client(url).items("/api/v1/nodes"), as_json=as_json, table=_node_table)


def _node_table(found: list[dict[str, Any]]) -> Table:
    def row(node: dict[str, Any]) -> tuple[str, ...]:
        return (
            node["node"],
            "alive" if node["alive"] else f"lost: {node['reason']}",
            "yes" if node["trusted"] else "no",
            figure(node["profile"].get("compute_flops"), 1e-9, 2),
            figure(node["profile"].get("memory_bytes"), 1e-6),
            node["busy"] or "",
            ", ".join(node["shards"]),
        )

    columns = ("node", "state", "trusted", "Gflop/s", "memory MB", "busy", "shards")
    return make_table(f"{len(found)} nodes", columns, map(row, found))


@click.command()
@url_option
@json_option
def network(url: str, as_json: bool) -> None:
    """Show the measured path from the orchestrator to every node."""
    show(Client(url).get("/api/v1/network"), as_json=as_json, table=_network_table)


def _network_table(measured: dict[str, Any]) -> Table:
    def row(node: dict[str, Any]) -> tuple[str, ...]:
        path = node["from_orchestrator"]
        return (
            node["node"],
            figure(path["delay_s"]["value"], 1e3),
            figure(path["loss_ratio"]["value"], 100, 2),
            figure(path["capacity_bps"]["value"], 1e-6, 2),
            figure(path["available_bps"]["value"], 1e-6, 2),
            figure(path["delay_s"]["age_s"]),
        )

    columns = ("to node", "delay ms", "loss %", "capacity Mbit/s", "available Mbit/s", "age s")
    return make_table("Measured paths from the orchestrator", columns, map(row, measured["nodes"]))


@click.command()
@url_option
@json_option
def scores(url: str, as_json: bool) -> None:
    """Show every node's distance to the utopia point now, criterion by criterion."""
    show(Client(url).get("/api/v1/scores"), as_json=as_json, table=_score_table)


def _score_table(answer: dict[str, Any]) -> Table:
    criteria = ("compute", "bandwidth", "delay", "loss", "time")

    def row(score: dict[str, Any]) -> tuple[str, ...]:
        oriented = (figure(score["criteria"].get(name, {}).get("oriented"), 1, 2) for name in criteria)
        return (score["node"], str(score["rank"]), figure(score["score"], 1, 3), *oriented)

    columns = ("node", "rank", "score", *criteria)
    return make_table("Scores (1 is the utopia point)", columns, map(row, answer["items"]))


@click.command()
@click.option(
    "--policy", type=click.Choice(["all", "eliminate", "random"]), default="eliminate", show_default=True
)
@click.option("--epochs", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--model", default="embedded", show_default=True, help="`embedded`, a folder, or job:<id>.")
@click.option(
    "--data", default="found", show_default=True, help="`found`, or a text file at the orchestrator."
)
@click.option("--seed", type=click.IntRange(min=0), default=None)
@url_option
@json_option
def finetune(
    policy: str, epochs: int, model: str, data: str, seed: int | None, url: str, as_json: bool
) -> None:
    """Fine-tune a model over the nodes and follow it to the end."""
    client = Client(url)
    body = {"policy": policy, "epochs": epochs, "model": model, "data": data}
    job = client.post("/api/v1/jobs", body if seed is None else {**body, "seed": seed})
    say(f"{job['id']} started; cancel it with: curl -X DELETE {url}/api/v1/jobs/{job['id']}")
    _follow(client, job["id"], epochs)
    done = client.get(f"/api/v1/jobs/{job['id']}")
    if done["state"] != "completed":
        raise ApiError(f"{job['id']} is {done['state']}: {done['reason']}")
    show(done, as_json=as_json, table=_job_table)


def _follow(client: Client, job: str, epochs: int) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr) as progress:
        bar = progress.add_task("loading model and data", total=epochs)
        for kind, event in client.events(f"/api/v1/jobs/{job}/events"):
            if kind == "epoch":
                loss = "" if event["loss"] is None else f", loss {event['loss']:.4f}"
                text = f"epoch {event['epoch'] + 1}: {len(event['active'])} nodes{loss}"
                progress.update(bar, completed=event["epoch"] + 1, description=text)
            elif kind == "state":
                progress.update(bar, description=event["state"])
                if event["state"] in ("completed", "failed", "cancelled"):
                    return


def _job_table(job: dict[str, Any]) -> Table:
    def row(epoch: dict[str, Any]) -> tuple[str, ...]:
        return (
            str(epoch["epoch"] + 1),
            str(len(epoch["active"])),
            figure(epoch["loss"], 1, 4),
            figure(epoch["seconds"]),
            ", ".join(epoch["eliminated"]) or "–",
        )

    summary = job["summary"]
    title = (
        f"{job['id']}: {summary['completion_s']:.1f} s, "
        f"loss {figure(summary['start_loss'], 1, 4)} to {figure(summary['final_loss'], 1, 4)}"
    )
    return make_table(title, ("epoch", "nodes", "loss", "seconds", "eliminated"), map(row, job["epochs"]))


@click.command()
@click.option("--model", default="embedded", show_default=True, help="`embedded`, a folder, or job:<id>.")
@click.option("--min-nodes", type=click.IntRange(min=1), default=1, show_default=True)
@url_option
@json_option
def deploy(model: str, min_nodes: int, url: str, as_json: bool) -> None:
    """Place a model over the nodes and start serving it."""
    client = Client(url)
    made = client.post("/api/v1/deployments", {"model": model, "min_nodes": min_nodes})
    say(f"{made['id']} is being placed")
    path = f"/api/v1/deployments/{made['id']}"
    settled = client.wait(
        path, lambda answer: answer["state"] in ("serving", "failed"), timeout_s=DEPLOY_TIMEOUT_S
    )
    if settled["state"] == "failed":
        raise ApiError(f"{made['id']} failed: {settled['reason']}")
    show(settled, as_json=as_json, table=_placement_table)


def _placement_table(deployment: dict[str, Any]) -> Table:
    placement = deployment["placement"]
    rows = [
        (stage["node"], f"layers {stage['first_layer']} to {stage['end_layer'] - 1}")
        for stage in placement["stages"]
    ]
    title = f"{deployment['id']}: head (embedding, LM head) on {placement['head']}"
    return make_table(title, ("stage", "holds"), rows)


@click.command()
@click.argument("deployment")
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@url_option
def generate(deployment: str, prompt: str, max_tokens: int, url: str) -> None:
    """Continue PROMPT with DEPLOYMENT, token by token."""
    body = {"model": deployment, "prompt": prompt, "max_tokens": max_tokens, "stream": True}
    for chunk in Client(url).stream("/v1/completions", body):
        if "error" in chunk:
            raise ApiError(f"{deployment}: {chunk['error']['message']}")
        click.echo(chunk["choices"][0]["text"], nl=False)
    click.echo()


@click.command()
@click.argument("run")
@url_option
@json_option
def explain(run: str, url: str, as_json: bool) -> None:
    """Say what was decided in RUN (a job or deployment), and why."""
    client = Client(url)
    kind = next((item["kind"] for item in client.items("/api/v1/runs") if item["id"] == run), None)
    if kind is None:
        raise ApiError(f"there is no job or deployment {run!r}; `curl {url}/api/v1/runs` lists them")
    decisions = client.items(f"/api/v1/{kind}s/{run}/decisions")
    show(decisions, as_json=as_json, table=_decision_table)


def _decision_table(decisions: list[dict[str, Any]]) -> Table:
    made = Table(title=f"{len(decisions)} decisions", title_justify="left", box=None, header_style="bold")
    for column in ("decision", "verdict", "why"):
        made.add_column(column, overflow="fold")
    for decision in decisions:
        made.add_row(decision["kind"], decision["verdict"], decision["reason"])
    return made


COMMANDS = (nodes, network, scores, finetune, deploy, generate, explain)
