"""How a worker comes to its certificate and its two connections, and who is turned away."""

from __future__ import annotations

import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from agent_loopback import Worker
from reserved_ports import reserved_port
from worker_loopback import LoopbackOrchestrator, TestAuthority, wait_until

from workers.errors import (
    ConnectFailed,
    EnrolmentError,
    RemoteError,
)


def test_a_worker_enrols_attaches_both_channels_and_tells_how_it_is(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    (_, control), (_, bulk) = orchestrator.attached
    assert (control["channel"], bulk["channel"]) == ("control", "bulk")
    assert control["session"] == bulk["session"]
    assert (control["address"], control["port"]) == (bulk["address"], bulk["port"])
    assert control["profile"]["compute_flops"] == 1e9
    assert control["profile"]["emulated"] is True
    wait_until(lambda: len(orchestrator.heartbeats("h1")) >= 3, what="three heartbeats")
    heartbeat = orchestrator.heartbeats("h1")[-1]
    assert heartbeat["shards"] == ["demo/3: layers 0 to 2"]
    assert heartbeat["busy"] is None
    assert abs(heartbeat["sent_at"] - time.time()) < 60
    assert heartbeat["rss_bytes"] > 1e6
    assert heartbeat["free_memory_bytes"] > 1e6
    assert heartbeat["packets"] is None


def test_a_worker_listens_where_it_was_told_to_or_else_tells_where_it_does(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    start("h1", token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    address, port = orchestrator.place_of("h1")
    assert port != 0
    with socket.create_connection((address, port), timeout=5):
        pass
    with reserved_port() as given:
        start("h2", token=orchestrator.authority.token("h2"), listen=("127.0.0.1", given))
        orchestrator.wait_for("h2")
        assert orchestrator.place_of("h2") == ("127.0.0.1", given)


def test_the_private_key_is_readable_by_its_owner_only(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator, tmp_path: Path
) -> None:
    start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    assert stat.S_IMODE((tmp_path / "h1" / "worker.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "h1").stat().st_mode) == 0o700


def test_a_restarted_worker_attaches_with_its_certificate_and_no_token(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    first = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    first.close()
    start()
    orchestrator.wait_for("h1", attachments=2)


def test_a_worker_without_token_or_certificate_says_what_to_do(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.thread.join(10)
    assert isinstance(worker.failure, EnrolmentError)
    assert "no token was given" in str(worker.failure)


def test_a_token_works_once(start: Callable[..., Worker], orchestrator: LoopbackOrchestrator) -> None:
    token = orchestrator.authority.token("h1")
    start("h1", token=token)
    orchestrator.wait_for("h1")
    thief = start("h1", token=token, state_dir=Path(orchestrator.authority.directory) / "thief")
    thief.thread.join(10)
    assert isinstance(thief.failure, EnrolmentError)
    assert "enrolment-refused" in str(thief.failure)


def test_a_worker_whose_enrolment_was_not_answered_asks_again_for_the_same_key(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator, tmp_path: Path
) -> None:
    orchestrator.enrolments_to_lose = 2
    worker = start("h1", token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    assert worker.failure is None
    assert orchestrator.enrolments_to_lose == 0
    assert not (tmp_path / "h1" / "enrolling.key").exists()


def test_a_worker_that_is_killed_before_it_was_answered_goes_on_with_its_key(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator, tmp_path: Path
) -> None:
    token = orchestrator.authority.token("h1")
    orchestrator.enrolments_to_lose = 10**6
    first = start("h1", token=token)
    wait_until(lambda: "h1" in orchestrator.authority.bought, what="the enrolment that is not answered")
    first.close()
    kept = tmp_path / "h1" / "enrolling.key"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    orchestrator.enrolments_to_lose = 0
    second = start("h1", token=token)
    orchestrator.wait_for("h1")
    assert second.failure is None
    assert not kept.exists()


def test_a_token_of_another_authority_is_noticed_before_the_secret_is_sent(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator, tmp_path: Path
) -> None:
    stranger = TestAuthority(tmp_path / "stranger")
    orchestrator.authority.secrets["h1"] = stranger.token("h1").partition(".")[0]
    worker = start(token=f"{orchestrator.authority.secrets['h1']}.{stranger.token('h1').partition('.')[2]}")
    worker.thread.join(10)
    assert isinstance(worker.failure, EnrolmentError)
    assert "somebody else answers there" in str(worker.failure)
    assert "h1" in orchestrator.authority.secrets  # still unused


def test_a_certificate_of_a_former_authority_is_replaced_with_the_new_token(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator, tmp_path: Path
) -> None:
    former = TestAuthority(tmp_path / "former").identity("h1")
    worker = start(token=orchestrator.authority.token("h1"), state_dir=former.key_path.parent)
    orchestrator.wait_for("h1")
    assert worker.failure is None


def test_a_refused_certificate_is_replaced_if_there_is_a_token_else_the_worker_ends(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    first = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    first.close()
    orchestrator.refuse_attach = "h1 was revoked"
    again = start()
    again.thread.join(10)
    assert isinstance(again.failure, RemoteError)
    assert again.failure.detail == "h1 was revoked"
    before = (again.config.state_dir / "worker.pem").read_bytes()
    last = start(token=orchestrator.authority.token("h1"))
    wait_until(lambda: "h1" not in orchestrator.authority.secrets, what="the second enrolment")
    orchestrator.refuse_attach = None
    last.thread.join(0)
    wait_until(
        lambda: (last.config.state_dir / "worker.pem").read_bytes() != before, what="the new certificate"
    )


def test_certificates_that_are_gone_are_said_to_be_with_the_way_out(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    for path in worker.config.state_dir.glob("*.pem"):
        path.unlink()
    orchestrator.channels["h1", "control"].close()
    worker.thread.join(10)
    assert isinstance(worker.failure, EnrolmentError)
    assert f"in {worker.config.state_dir} cannot be read any more" in str(worker.failure)
    assert "with a new token" in str(worker.failure)


def test_an_unreachable_orchestrator_is_given_up_after_the_deadline(start: Callable[..., Worker]) -> None:
    with reserved_port() as port:
        worker = start(
            orchestrator=("127.0.0.1", port),
            token=f"{'s' * 20}.{'0' * 64}",
            give_up_after_s=0.5,
        )
        worker.thread.join(10)
    assert isinstance(worker.failure, ConnectFailed)
    assert f"127.0.0.1:{port} not reached" in str(worker.failure)


def test_a_worker_that_is_stopped_does_not_wait_for_an_orchestrator_that_does_not_answer(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    orchestrator.answers.clear()
    worker = start(token=orchestrator.authority.token("h1"))
    try:
        wait_until(lambda: orchestrator.attached, what="the worker asks to attach", within_s=30)
        worker.close()  # asserts that it ends, long before its request would run out
    finally:
        orchestrator.answers.set()
    assert worker.failure is None
