"""The command line explains itself and fails with one message and a code."""

import socket
from pathlib import Path

import click.testing
import pytest

from orchestrator import cli
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
