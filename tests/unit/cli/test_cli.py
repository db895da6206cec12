"""The command line explains itself and fails with one message and a code."""

import socket
from pathlib import Path
from typing import ClassVar

import click.testing
import pytest

from orchestrator import cli
from orchestrator.cli import emulation, output, work
from orchestrator.client import ApiError, Client


@pytest.fixture
def nobody() -> str:
    """The URL of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def invoke(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["utopia", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_every_command_has_help(command: str) -> None:
    shown = click.testing.CliRunner().invoke(cli.cli, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.output


@pytest.mark.parametrize(
    "command", [["nodes"], ["network"], ["scores"], ["finetune"], ["deploy"], ["explain", "x"]]
)
def test_an_orchestrator_that_is_not_there_is_one_message(
    command: list[str], nobody: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, error = invoke(capsys, monkeypatch, *command, "--url", nobody)
    assert code == 1
    assert f"the orchestrator at {nobody} does not answer" in error
    assert "make mininet-up" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["up", "down", "demo"])
def test_a_bad_scenario_is_refused_before_anything_is_started(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = tmp_path / "bad.yaml"
    scenario.write_text("name: bad\nfinetune: {epochs: 12}\n")
    code, error = invoke(capsys, monkeypatch, command, str(scenario))
    assert code == 1
    assert "finetune.epochs is 12" in error


def test_degrade_wants_to_know_what_to_change(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, error = invoke(capsys, monkeypatch, "degrade", "h1-g1")
    assert code == 2
    assert "--delay, --rate or --loss" in error


def test_a_testbed_that_is_not_up_has_a_code_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, error = invoke(capsys, monkeypatch, "degrade", "h1-g1", "--delay", "0.2", "--prefix", "zzz")
    assert code == 4
    assert "testbed zzz is not up" in error


def test_an_error_of_the_api_carries_its_detail_and_status(nobody: str) -> None:
    with pytest.raises(ApiError) as refusal:
        Client(nobody).get("/api/v1/nodes")
    assert refusal.value.status is None


def text_of(view: object, capsys: pytest.CaptureFixture[str]) -> str:
    """What a person sees of `view` on a terminal of 80 columns."""
    output.Console(width=80).print(view)
    return capsys.readouterr().out


def decision(kind: str, verdict: str, reason: str) -> dict[str, object]:
    return {"kind": kind, "verdict": verdict, "reason": reason, "at": 0.0}


def test_a_decision_taken_again_and_again_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    taken = [
        decision("place", "place", "asked for"),
        decision("reconfigure", "keep", "first"),
        decision("reconfigure", "keep", "second"),
        decision("reconfigure", "migrate", "third"),
    ]
    shown = text_of(work._decision_view(taken), capsys)
    assert "reconfigure: keep (2 times; the last:)" in shown
    assert "first" not in shown
    assert all(reason in shown for reason in ("asked for", "second", "third"))


def impairment(delay_s: float) -> dict[str, float]:
    return {"rate_bps": 1e6, "delay_s": delay_s, "loss_ratio": 0.0}


@pytest.mark.parametrize(
    ("back_s", "rows"),
    [
        (0.01, [("h1-g1", "1.00", "10.0", "0.00", "")]),
        (0.2, [("h1>g1", "1.00", "10.0", "0.00", ""), ("g1>h1", "1.00", "200.0", "0.00", "changed")]),
    ],
)
def test_a_link_changed_in_one_direction_shows_both(back_s: float, rows: list[tuple[str, ...]]) -> None:
    link = {
        "name": "h1-g1",
        "a": "h1",
        "b": "g1",
        "configured": {"a_to_b": impairment(0.01), "b_to_a": impairment(0.01)},
        "current": {"a_to_b": impairment(0.01), "b_to_a": impairment(back_s)},
    }
    assert list(emulation._link_rows(link)) == rows


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_degrade_refuses_what_is_not_a_finite_number(
    value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, error = invoke(capsys, monkeypatch, "degrade", "h1-g1", f"--rate={value}", "--prefix", "zzz")
    assert code == 2
    assert "--rate" in error


def test_a_folder_that_is_here_is_sent_by_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama").mkdir()
    monkeypatch.chdir(tmp_path)
    assert work._absolute("llama") == str(tmp_path / "llama")
    assert work._absolute("job:job-1") == "job:job-1"


class JobThatIsWatched:
    """Stands in for the client: a job whose watcher loses patience."""

    def __init__(self, url: str) -> None:
        pass

    def post(self, path: str, body: object) -> dict[str, str]:
        return {"id": "job-7"}

    def events(self, path: str) -> object:
        raise KeyboardInterrupt


def test_interrupting_the_wait_says_that_the_job_goes_on_and_how_to_end_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "Client", JobThatIsWatched)
    code, error = invoke(capsys, monkeypatch, "finetune", "--url", "http://there:1")
    assert code == 130
    assert "job-7 goes on" in error
    assert "utopia stop job-7 --url http://there:1" in error


class DeploymentThatServes:
    """Stands in for the client: one deployment, which is retired by the time that the answer is there."""

    def __init__(self, url: str) -> None:
        pass

    def items(self, path: str) -> list[dict[str, str]]:
        return [{"id": "dep-7", "kind": "deployment", "state": "serving"}]

    def delete(self, path: str) -> dict[str, str]:
        assert path == "/api/v1/deployments/dep-7"
        return {"state": "retired"}


def test_stop_says_what_it_was_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "Client", DeploymentThatServes)
    shown = click.testing.CliRunner().invoke(cli.cli, ["stop", "dep-7"])
    assert shown.output == "dep-7 is told to end; it was serving\n"


class DeploymentThatIsWatched:
    """Stands in for the client: a deployment that is as `settled` once it was placed, or was not."""

    settled: ClassVar[dict[str, object]] = {}

    def __init__(self, url: str) -> None:
        pass

    def post(self, path: str, body: object) -> dict[str, str]:
        return {"id": "dep-7"}

    def wait(self, path: str, ready: object, *, timeout_s: float) -> dict[str, object]:
        return {"id": "dep-7", **self.settled}


@pytest.mark.parametrize(
    "settled",
    [
        {"state": "failed", "reason": "memory: it needs 9 bytes"},
        {"state": "retired", "reason": "memory: it needs 9 bytes", "placement": {"head": "h1", "stages": []}},
        {"state": "degraded", "reason": "memory: it needs 9 bytes", "placement": None},
    ],
)
def test_a_deployment_that_does_not_serve_is_an_error_with_its_reason(
    settled: dict[str, object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "Client", DeploymentThatIsWatched)
    monkeypatch.setattr(DeploymentThatIsWatched, "settled", settled)
    code, error = invoke(capsys, monkeypatch, "deploy")
    assert code == 1
    assert f"dep-7 is {settled['state']}: memory: it needs 9 bytes" in error


def test_a_demo_without_a_trusted_node_is_refused_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = tmp_path / "nobody.yaml"
    scenario.write_text("name: nobody\ndevices: {trusted: []}\n")
    code, error = invoke(capsys, monkeypatch, "demo", str(scenario))
    assert code == 1
    assert "devices.trusted is empty" in error


@pytest.mark.parametrize(
    ("words", "taken_down"),
    [([], "env"), (["scenarios/small.yaml"], "uts"), (["scenarios/small.yaml", "--prefix", "abc"], "abc")],
)
def test_down_takes_what_is_named_most_closely(
    words: list[str], taken_down: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("topologies.testbed.down", lambda prefix, progress: seen.append(prefix) or [])
    shown = click.testing.CliRunner(env={"UTOPIA_PREFIX": "env"}).invoke(cli.cli, ["down", *words])
    assert (shown.exit_code, seen) == (0, [taken_down])
    assert f"Nothing of testbed {taken_down} was there." in shown.output


def test_more_options_of_a_job_come_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def post(_client: Client, path: str, body: dict[str, object]) -> dict[str, object]:
        asked.append(body)
        raise ApiError("that is all this test wants to see")

    monkeypatch.setattr(Client, "post", post)
    options = tmp_path / "options.yaml"
    options.write_text("epochs: 9\ntraining: {schedule: cosine, lora_rank: 8}\n")
    invoke(capsys, monkeypatch, "finetune", "--policy", "all", "--options", str(options))
    (body,) = asked
    assert (body["policy"], body["epochs"]) == ("all", 9)
    assert body["training"] == {"schedule": "cosine", "lora_rank": 8}


@pytest.mark.parametrize("content", ["- a", "{", "just words"])
def test_a_file_without_options_is_refused_by_name(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "options.yaml").write_text(content)
    code, error = invoke(capsys, monkeypatch, "finetune", "--options", str(tmp_path / "options.yaml"))
    assert code != 0
    assert "options.yaml" in error


def test_where_an_answers_time_went_is_shown_with_what_is_unknown_and_emulated(capsys):
    parts = {"compute_ms": 3.0, "queue_ms": 1.0, "wire_ms": 0.5}
    took = {
        "prompt_n": 7, "prompt_ms": 12.3, "prompt_per_second": 569.1,
        "predicted_n": 1, "predicted_ms": 0.0, "predicted_per_second": None,
        "utopia": {
            "emulated": True, "prompt": parts, "predicted": parts,
            "nodes": [{"node": "h2", "compute_ms": 6.0, "queue_ms": 2.0}],
        },
    }  # fmt: skip
    output.stdout.print(output.timings_table(took))
    output.stdout.print(output.timings_table({**took, "utopia": None}))
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert ["prompt", "7", "12.3", "569.1", "3.0", "1.0", "0.5"] in rows
    assert ["on", "h2", "6.0", "2.0"] in rows
    assert ["answer", "1", "0.0", "–", "–", "–", "–"] in rows, "unknown"
    assert shown.count("emulated") == 1
