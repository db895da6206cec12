"""A worker as a process: its signals, exit codes and last words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from worker_loopback import LoopbackOrchestrator


def run_process(served: LoopbackOrchestrator, state_dir: Path, **options: str) -> subprocess.Popen[str]:
    values = {
        "orchestrator": f"127.0.0.1:{served.port}",
        "node": "h1",
        "listen": "127.0.0.1:0",
        "state-dir": str(state_dir),
        "compute-flops": "1e9",
        "memory-bytes": "1000000",
        "threads": "1",
    } | options
    arguments = [text for name, value in values.items() for text in (f"--{name}", value)]
    command = [sys.executable, "-X", "faulthandler", "-m", "workers.agent", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_the_process_ends_at_sigterm_with_zero(orchestrator: LoopbackOrchestrator, tmp_path: Path) -> None:
    process = run_process(orchestrator, tmp_path / "h1", token=orchestrator.authority.token("h1"))
    try:
        try:
            orchestrator.wait_for("h1")
        except AssertionError as error:
            process.send_signal(signal.SIGABRT)  # it tells where each thread is
            raise AssertionError(f"{error}\n{process.communicate(timeout=10)[1]}") from None
        os.kill(process.pid, signal.SIGTERM)
        _, diagnostics = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0, diagnostics


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"token": "nonsense"}, 3, "is not <secret>.<64 hex digits>"),
        ({"token": f"{'s' * 20}.{'0' * 64}"}, 3, "somebody else answers there"),
        ({"listen": "nowhere"}, 1, "must be ADDRESS:PORT"),
        ({"listen": "198.51.100.7:7001"}, 2, "cannot listen on 198.51.100.7:7001"),
        (
            {"orchestrator": "127.0.0.1:9", "token": f"{'s' * 20}.{'0' * 64}", "give-up-after-s": "0.3"},
            4,
            "given up",
        ),
    ],
)
def test_the_process_ends_with_a_clear_message_and_its_own_code(
    orchestrator: LoopbackOrchestrator, tmp_path: Path, options: dict[str, str], code: int, words: str
) -> None:
    process = run_process(orchestrator, tmp_path / "h1", **options)
    try:
        _, diagnostics = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code, diagnostics
    assert words in diagnostics
    assert "Traceback" not in diagnostics
