"""Commands on the orchestrator's work: what it knows, and the jobs and deployments it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from orchestrator.cli.output import figure, json_option, make_table, say, show, stderr, timings_table
from orchestrator.client import ApiError, Client
from orchestrator.core.selection import POLICIES

DEFAULT_URL = "http://127.0.0.1:8181"
DEPLOY_TIMEOUT_S = 180.0
INTERRUPTED = 130
_BEFORE_SERVING = ("accepted", "preparing")

url_option = click.option(
    "--url", default=DEFAULT_URL, envvar="UTOPIA_URL", show_default=True, help="The orchestrator's REST API."
)


@click.command()
@url_option
@json_option
def nodes(url: str, as_json: bool) -> None:
    """List the nodes: whether they live, what they are and do."""
    show(Client(url).items("/api/v1/nodes"), as_json=as_json, view=_node_table)


def _node_table(found: list[dict[str, Any]]) -> RenderableType:
    def row(node: dict[str, Any]) -> tuple[str, ...]:
        return (
            node["node"],
            "alive" if node["alive"] else "lost" if node["enrolled"] else "invited",
            "yes" if node["trusted"] else "no",
            figure(node["profile"].get("compute_flops"), 1e-9, 2),
            figure(node["profile"].get("memory_bytes"), 1e-6),
            node["busy"] or "",
            ", ".join(node["shards"]),
        )

    columns = ("node", "state", "trusted", "Gflop/s", "memory MB", "busy", "shards")
    notes = [f"{node['node']}: {node['reason']}" for node in found if node["reason"] and not node["alive"]]
    title = f"{sum(node['alive'] for node in found)} of {len(found)} nodes are alive"
    return make_table(
        title, columns, map(row, found), notes=notes, texts=("state", "trusted", "busy", "shards")
    )


@click.command()
@url_option
@json_option
def network(url: str, as_json: bool) -> None:
    """Show the measured path from the orchestrator to every node."""
    show(Client(url).get("/api/v1/network"), as_json=as_json, view=_network_table)


def _network_table(measured: dict[str, Any]) -> RenderableType:
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
    """Show every node's score now, criterion by criterion."""
    show(Client(url).get("/api/v1/scores"), as_json=as_json, view=_score_table)


def _score_table(answer: dict[str, Any]) -> RenderableType:
    criteria = ("compute", "bandwidth", "delay", "loss", "time")

    def row(score: dict[str, Any]) -> tuple[str, ...]:
        found = (score["criteria"].get(name, {"value": None}) for name in criteria)
        oriented = (figure(None if one["value"] is None else one["oriented"], 1, 2) for one in found)
        return (score["node"], str(score["rank"]), figure(score["score"], 1, 3), *oriented)

    columns = ("node", "rank", "score", *criteria)
    return make_table(
        "Scores: 1 is the utopia point; criteria: 1 is the best of all nodes",
        columns,
        map(row, answer["items"]),
    )


@click.command()
@click.option(
    "--policy", type=click.Choice(POLICIES), default="eliminate", show_default=True, help="Who trains."
)
@click.option("--epochs", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--model", default="embedded", show_default=True, help="`embedded`, a folder, or job:<id>.")
@click.option("--data", default="found", show_default=True, help="`found` (on this machine), or a text file.")
@click.option("--seed", type=click.IntRange(min=0), default=None)
@click.option(
    "--options",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="YAML as in a scenario's `finetune` (docs/fine_tuning.md); what it names goes before the others.",
)
@url_option
@json_option
def finetune(
    policy: str,
    epochs: int,
    model: str,
    data: str,
    seed: int | None,
    options: Path | None,
    url: str,
    as_json: bool,
) -> None:
    """Fine-tune a model over the nodes and follow it to the end."""
    client = Client(url)
    body = {"policy": policy, "epochs": epochs, "model": _absolute(model), "data": _absolute(data)}
    body |= {} if seed is None else {"seed": seed}
    job = client.post("/api/v1/jobs", {**body, **_options(options)})["id"]
    say(f"{job} is started")
    with _goes_on(job, url):
        _follow(client, job, epochs)
    done = client.get(f"/api/v1/jobs/{job}")
    if done["state"] != "completed":
        raise ApiError(f"{job} is {done['state']}: {done['reason']}")
    show(done, as_json=as_json, view=_job_table)


def _options(path: Path | None) -> dict[str, Any]:
    """Read a file of more options; the orchestrator checks what they are."""
    if path is None:
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.BadParameter(f"{path} cannot be read: {error}", param_hint="--options") from error
    if not isinstance(found, dict):
        raise click.BadParameter(f"{path} holds no map of options", param_hint="--options")
    return found


def _absolute(name: str) -> str:
    """Give a file or folder that is here by its full path: the orchestrator runs in another directory."""
    return str(Path(name).resolve()) if Path(name).exists() else name


@contextmanager
def _goes_on(run: str, url: str) -> Iterator[None]:
    """Say, when the person stops waiting, that what they wait for goes on."""
    option = "" if url == DEFAULT_URL else f" --url {url}"
    try:
        yield
    except KeyboardInterrupt:
        say(f"{run} goes on at the orchestrator. See it with `utopia runs{option}`,")
        say(f"end it with `utopia stop {run}{option}`")
        raise SystemExit(INTERRUPTED) from None


def _follow(client: Client, job: str, epochs: int) -> None:
    """Print a line per step and epoch until the job ends; at a terminal with a bar below."""
    columns = (TextColumn("epochs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as progress:
        bar = progress.add_task("epochs", total=epochs)
        for kind, event in client.events(f"/api/v1/jobs/{job}/events"):
            if kind == "epoch":
                progress.update(bar, completed=event["epoch"] + 1)
            if kind == "state" or (kind == "epoch" and event["loss"] is not None):
                say(_step(kind, event))
            if event.get("final"):
                return


def _step(kind: str, event: dict[str, Any]) -> str:
    if kind == "state":
        return f"{event['state']}: {event['reason']}"
    notes = ("eliminated", "readmitted", "late")
    out = "".join(f"; {note} {', '.join(event[note])}" for note in notes if event.get(note))
    return (
        f"epoch {event['epoch'] + 1}: {len(event['active'])} nodes, {event['seconds']:.1f} s, "
        f"loss {event['loss']:.4f}{out}"
    )


def _job_table(job: dict[str, Any]) -> RenderableType:
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
    spent = summary.get("energy_total", {}).get("total_j")
    notes = () if spent is None else (f"energy of all nodes, by their power profile: {spent:.0f} J",)
    columns = ("epoch", "nodes", "loss", "seconds", "eliminated")
    return make_table(title, columns, map(row, job["epochs"]), notes=notes)


@click.command()
@click.option("--model", default="embedded", show_default=True, help="`embedded`, a folder, or job:<id>.")
@click.option("--min-nodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--name", help="What requests may call it; deployments of one name are replicas.")
@click.option(
    "--compute",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="How nodes hold the parameters.",
)
@click.option(
    "--wire",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="How rows travel between nodes.",
)
@click.option(
    "--context-tokens",
    type=click.IntRange(min=16),
    help="Prompt and answer together; the model's own maximum, 1024 at most, if not given.",
)
@click.option(
    "--kv-cache-bytes",
    type=click.IntRange(min=1),
    help="The most that keys and values may take on all nodes together; what they have left, if not given.",
)
@url_option
@json_option
def deploy(model: str, url: str, as_json: bool, **settings: Any) -> None:
    """Place a model over the nodes and start serving it."""
    client = Client(url)
    asked = {"model": _absolute(model), **settings}
    made = client.post("/api/v1/deployments", asked)
    say(f"{made['id']} is being placed")
    path = f"/api/v1/deployments/{made['id']}"
    with _goes_on(made["id"], url):
        settled = client.wait(
            path, lambda answer: answer["state"] not in _BEFORE_SERVING, timeout_s=DEPLOY_TIMEOUT_S
        )
    if settled["state"] in ("failed", "retired") or settled.get("placement") is None:
        raise ApiError(f"{made['id']} is {settled['state']}: {settled['reason']}")
    show(settled, as_json=as_json, view=_placement_table)


def _placement_table(deployment: dict[str, Any]) -> RenderableType:
    placement = deployment["placement"]
    rows = [
        (stage["node"], f"layers {stage['first_layer']} to {stage['end_layer'] - 1}")
        for stage in placement["stages"]
    ]
    title = f"{deployment['id']}: head (embedding, LM head) on {placement['head']}"
    try_it = f"Try: utopia generate {deployment['id']} 'The network '"
    return make_table(title, ("stage", "holds"), rows, notes=(try_it,), texts=("holds",))


@click.command()
@click.argument("deployment")
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--chat", is_flag=True, help="PROMPT is a message to be answered, not a text to be continued.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0, the default: always the best token.")
@click.option("--top-p", type=click.FloatRange(0, 1), help="Only the likeliest tokens of so much together.")
@click.option("--top-k", type=click.IntRange(min=0), help="Only so many of the likeliest tokens.")
@click.option("--seed", type=click.IntRange(min=0), help="The same seed draws the same tokens.")
@click.option("--stop", multiple=True, help="End before this text; may be given several times.")
@click.option("--timings", is_flag=True, help="Show where the time went, beside the text.")
@click.option("--key", envvar="UTOPIA_API_KEY", help="An API key, where they are asked for.")
@url_option
def generate(
    deployment: str, prompt: str, chat: bool, timings: bool, key: str | None, url: str, **settings: Any
) -> None:
    """Continue PROMPT with DEPLOYMENT, or answer it, token by token."""
    given = {name: value for name, value in settings.items() if value not in (None, ())}
    asked = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    body = {"model": deployment, "stream": True, **asked, **given}
    body |= {"stream_options": {"include_usage": True}} if timings else {}
    took: dict[str, Any] | None = None
    for chunk in Client(url, token=key).stream(path, body):
        if "error" in chunk:
            raise ApiError(f"{deployment}: {chunk['error']['message']}")
        took = chunk.get("timings", took)
        for choice in chunk["choices"]:
            click.echo(choice["delta"].get("content", "") if chat else choice["text"], nl=False)
    click.echo()
    if took is not None:
        stderr.print(timings_table(took))


@click.command()
@url_option
@json_option
def runs(url: str, as_json: bool) -> None:
    """List the jobs and deployments, newest first."""
    show(Client(url).items("/api/v1/runs"), as_json=as_json, view=_run_table)


def _run_table(found: list[dict[str, Any]]) -> RenderableType:
    rows = [(run["id"], run["state"], _when(run["created_at"]), run["reason"] or "") for run in found]
    return make_table(
        f"{len(found)} runs", ("run", "state", "since", "why"), rows, texts=("state", "since", "why")
    )


def _when(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s).strftime("%d %b %H:%M:%S")


@click.command()
@click.argument("run")
@url_option
def stop(run: str, url: str) -> None:
    """Cancel RUN if it is a job, take it down if a deployment."""
    client = Client(url)
    found = _find(client, run)
    client.delete(_path(found))
    click.echo(f"{run} is told to end; it was {found['state']}")


def _find(client: Client, run: str) -> dict[str, Any]:
    found: dict[str, Any] | None = next(
        (item for item in client.items("/api/v1/runs") if item["id"] == run), None
    )
    if found is None:
        raise ApiError(f"there is no job or deployment {run!r}; `utopia runs` lists them")
    return found


def _path(run: dict[str, Any]) -> str:
    return f"/api/v1/{run['kind']}s/{run['id']}"


@click.command()
@click.argument("run")
@url_option
@json_option
def explain(run: str, url: str, as_json: bool) -> None:
    """Say what was decided in RUN (a job or deployment), and why."""
    client = Client(url)
    decisions = client.items(f"{_path(_find(client, run))}/decisions")
    show(decisions, as_json=as_json, view=_decision_view)


def _decision_view(decisions: list[dict[str, Any]]) -> RenderableType:
    """Give a paragraph per decision; of one that was taken several times on end, the last."""
    shown: list[RenderableType] = [f"{len(decisions)} decisions; --json has inputs, scores and alternatives"]
    for _, same in groupby(decisions, key=lambda decision: (decision["kind"], decision["verdict"])):
        repeated = list(same)
        last = repeated[-1]
        times = f" ({len(repeated)} times; the last:)" if len(repeated) > 1 else ""
        shown.append(Text(f"{_when(last['at'])}  {last['kind']}: {last['verdict']}{times}", style="bold"))
        shown.append(Padding(Text(last["reason"]), (0, 0, 0, 4)))
    return Group(*shown)


COMMANDS = (nodes, network, scores, finetune, deploy, generate, runs, stop, explain)
