"""A worker's life on loopback: enrolment, attaching, commands, peers, coming back, ending."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reserved_ports import reserved_port
from worker_loopback import LoopbackOrchestrator, TestAuthority, wait_until

from workers import connections, link, tls
from workers.agent import Agent
from workers.config import WorkerConfig
from workers.device import Pacer
from workers.device_profile import make_profile
from workers.errors import (
    ChannelClosed,
    ConfigError,
    ConnectFailed,
    EnrolmentError,
    IdentityMismatch,
    LinkError,
    RemoteError,
    RequestRefused,
    WireError,
)
from workers.outbox import Outbox
from workers.wire import Frame


class RecordingTrainer:
    """Answers commands with their kind; `train.run` waits until it is let go."""

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.let_go = threading.Event()
        self.closed = False

    def handle(self, frame: Frame) -> link.Reply:
        if frame.kind == "train.run":
            self.let_go.wait(20)
        return link.Reply({"by": "trainer", "kind": frame.kind})

    def close(self) -> None:
        self.closed = True
        self.let_go.set()


class RecordingShards:
    """Records peers' frames; knows the dialler and the notifier that the agent lent it."""

    def __init__(
        self,
        node: str,
        pacer: Pacer,
        *,
        memory_bytes: int,
        dial: Callable[[str, str, int], link.Channel],
        notify: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.dial = dial
        self.notify = notify
        self.frames: list[tuple[str, Frame]] = []
        self.closed = False

    def handle(self, frame: Frame) -> link.Reply:
        return link.Reply({"by": "shards", "kind": frame.kind})

    def on_peer_frame(self, peer_name: str, frame: Frame, *, more: bool) -> None:
        if peer_name == "h9":
            raise RequestRefused("not-on-route", "h9 is not on the route")
        if frame.kind == "release":
            raise WireError("a release that makes no sense")
        self.frames.append((peer_name, frame))

    def holdings(self) -> list[str]:
        return ["demo/3: layers 0 to 2"]

    def caches(self) -> dict[str, Any]:
        return {"used_bytes": {"demo": 5}, "free_bytes": 7}

    def close(self) -> None:
        self.closed = True


class Worker:
    """An agent running in a thread, with its parts within reach."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.failure: Exception | None = None

        def make_trainer(pacer: Pacer, _local_data: Path | None) -> RecordingTrainer:
            self.trainer = RecordingTrainer(pacer)
            return self.trainer

        def make_shards(*arguments: Any, **options: Any) -> RecordingShards:
            self.shards = RecordingShards(*arguments, **options)
            return self.shards

        self.agent = Agent(config, make_profile(config), make_trainer=make_trainer, make_shards=make_shards)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.agent.run()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.failure = error

    def close(self) -> None:
        self.agent.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def authority(tmp_path: Path) -> TestAuthority:
    return TestAuthority(tmp_path / "authority")


@pytest.fixture
def orchestrator(authority: TestAuthority) -> Iterator[LoopbackOrchestrator]:
    with closing(LoopbackOrchestrator(authority)) as served:
        yield served


@pytest.fixture
def start(orchestrator: LoopbackOrchestrator, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    with ExitStack() as stack:

        def start(node: str = "h1", **changes: Any) -> Worker:
            values: dict[str, Any] = {
                "node": node,
                "orchestrator": ("127.0.0.1", orchestrator.port),
                "listen": ("127.0.0.1", 0),
                "state_dir": tmp_path / node,
                "power": 30.0,
                "compute_flops": 1e9,
                "memory_bytes": 10**6,
                "emulated": True,
                "give_up_after_s": 20.0,
            }
            return stack.enter_context(closing(Worker(WorkerConfig(**(values | changes)))))

        yield start


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


def test_what_fine_tuning_may_take_is_limited_by_the_configuration(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    start(token=orchestrator.authority.token("h1"), training_memory_bytes=12_345)
    wait_until(lambda: orchestrator.heartbeats("h1"), what="a heartbeat")
    assert orchestrator.heartbeats("h1")[-1]["free_memory_bytes"] == 12_345


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


def test_commands_go_to_trainer_and_shards_and_the_rest_is_refused(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    worker.trainer.let_go.set()
    for kind, by in {
        "train.load": "trainer",
        "train.end": "trainer",
        "shard.prepare": "shards",
        "generate": "shards",
        "cancel": "shards",
        "probe.layer": "shards",
    }.items():
        assert orchestrator.request("h1", kind, channel="bulk").fields == {"by": by, "kind": kind}
    with pytest.raises(RemoteError, match="not-served: a worker does not know 'activation'"):
        orchestrator.request("h1", "activation")


def test_heartbeats_go_on_and_name_the_command_while_it_runs(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    asking = threading.Thread(target=lambda: orchestrator.request("h1", "train.run", channel="bulk"))
    asking.start()
    wait_until(
        lambda: [beat["busy"] for beat in orchestrator.heartbeats("h1")].count("train.run") >= 3,
        what="heartbeats of a busy worker",
    )
    worker.trainer.let_go.set()
    asking.join(10)
    wait_until(lambda: orchestrator.heartbeats("h1")[-1]["busy"] is None, what="an idle heartbeat")


def test_a_worker_comes_back_when_its_connections_are_cut(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    first = orchestrator.channels["h1", "control"]
    orchestrator.channels["h1", "bulk"].close()  # either one ends both
    orchestrator.wait_for("h1", attachments=2)
    assert first.wait_closed(5)
    assert orchestrator.attached[0][1]["session"] != orchestrator.attached[-1][1]["session"]


def test_a_worker_outlives_a_restart_of_the_orchestrator_and_then_sends_what_waited(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    orchestrator.leave()
    for index in range(5):
        worker.shards.notify("tokens", {"index": index})
    orchestrator.open()
    orchestrator.wait_for("h1", attachments=2)

    def indices() -> list[int]:
        return [fields["index"] for _, kind, fields in list(orchestrator.notified) if kind == "tokens"]

    wait_until(lambda: indices()[-1:] == [4], what="the notifications that waited")
    # The first may have been handed to the old connection before it was known to be gone.
    assert indices() == list(range(5 - len(indices()), 5))


class FlakyChannel:
    """A control channel that takes some notifications and then is gone."""

    def __init__(self, *, takes: int) -> None:
        self.takes = takes
        self.got: list[int] = []
        self.gone = threading.Event()

    def notify(self, kind: str, fields: dict[str, int]) -> None:
        if len(self.got) == self.takes:
            self.gone.set()
            raise ChannelClosed("gone")
        self.got.append(fields["index"])


def test_a_notification_that_failed_is_the_first_on_the_next_channel() -> None:
    first, second = FlakyChannel(takes=3), FlakyChannel(takes=100)
    with closing(Outbox()) as outbox:
        for index in range(6):
            outbox.put("token", {"index": index})
        outbox.use(first)  # type: ignore[arg-type]
        assert first.gone.wait(5)
        outbox.use(second)  # type: ignore[arg-type]
        wait_until(lambda: len(second.got) == 3, what="the rest")
    assert first.got + second.got == list(range(6))


def test_what_nothing_waits_for_goes_out_in_the_thread_that_tells_it() -> None:
    told: list[tuple[int, str]] = []

    class Channel:
        full = False

        def notify_at_once(self, _kind: str, fields: Mapping[str, Any]) -> bool:
            if not self.full:
                told.append((fields["index"], threading.current_thread().name))
            return not self.full

        def notify(self, _kind: str, fields: Mapping[str, Any]) -> None:
            told.append((fields["index"], threading.current_thread().name))

    channel = Channel()
    with closing(Outbox()) as outbox:
        outbox.use(channel)  # type: ignore[arg-type]
        outbox.put("tokens", {"index": 0})
        assert told == [(0, threading.current_thread().name)]
        channel.full = True
        outbox.put("tokens", {"index": 1})
        wait_until(lambda: told[1:] == [(1, "outbox")], what="the one that had to wait")


def test_peers_reach_the_shards_under_their_certificates_name(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    first = start("h1", token=orchestrator.authority.token("h1"))
    second = start("h2", token=orchestrator.authority.token("h2"))
    orchestrator.wait_for("h1", "h2")
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    with closing(second.shards.dial("h1", *orchestrator.place_of("h1"))) as channel:
        channel.notify("activation", {"position": 3}, {"x": rows})
        wait_until(lambda: first.shards.frames, what="the activation")
    peer_name, frame = first.shards.frames[0]
    assert (peer_name, frame.fields) == ("h2", {"position": 3})
    np.testing.assert_array_equal(frame.tensors["x"], rows)


def test_a_node_does_not_take_commands_of_another_node(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    context = orchestrator.authority.identity("h2").client_context()
    for kind in ("train.load", "shard.prepare", "generate", "activation"):
        with closing(
            connections.connect(*orchestrator.place_of("h1"), context=context, expected_name="h1")
        ) as channel:
            with pytest.raises(LinkError):
                channel.request(kind, timeout_s=5)
            assert channel.wait_closed(5)
    assert worker.shards.frames == []


def test_a_peer_that_breaks_the_protocol_or_is_not_on_the_route_does_not_disturb_others(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")

    def dial(name: str) -> link.Channel:
        context = orchestrator.authority.identity(name).client_context()
        return connections.connect(*orchestrator.place_of("h1"), context=context, expected_name="h1")

    with closing(dial("h2")) as good, closing(dial("h3")) as bad, closing(dial("h9")) as stray:
        stray.notify("activation")
        bad.notify("release")
        assert bad.wait_closed(5)
        good.notify("activation")
        wait_until(lambda: worker.shards.frames, what="the good peer's activation")
        assert [name for name, _ in worker.shards.frames] == ["h2"]


def test_a_peer_without_certificate_is_not_let_in(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    context = tls.client_context(ca_path=orchestrator.authority.ca_path)
    with (
        closing(
            connections.connect(*orchestrator.place_of("h1"), context=context, expected_name="h1")
        ) as channel,
        pytest.raises(LinkError),
    ):
        channel.request("activation", timeout_s=5)


def test_dialling_a_node_that_is_not_there_under_that_name_fails(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    start("h1", token=orchestrator.authority.token("h1"))
    second = start("h2", token=orchestrator.authority.token("h2"))
    orchestrator.wait_for("h1", "h2")
    with pytest.raises(IdentityMismatch, match="names 'h1'"):
        second.shards.dial("h3", *orchestrator.place_of("h1"))


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


def test_stopping_closes_the_parts(start: Callable[..., Worker], orchestrator: LoopbackOrchestrator) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    started_s = time.monotonic()
    worker.close()
    assert time.monotonic() - started_s < 3
    assert worker.trainer.closed
    assert worker.shards.closed
    assert worker.failure is None


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
    return subprocess.Popen(
        [sys.executable, "-m", "workers.agent", *arguments], stderr=subprocess.PIPE, text=True
    )


def test_the_process_ends_at_sigterm_with_zero(orchestrator: LoopbackOrchestrator, tmp_path: Path) -> None:
    process = run_process(orchestrator, tmp_path / "h1", token=orchestrator.authority.token("h1"))
    try:
        orchestrator.wait_for("h1")
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, "unknown worker keys: colour"),
        ({"pacing": 1}, "pacing is 1"),
        ({"power": True}, "power is True"),
        ({"power": -3}, "power is -3"),
        ({"listen": "198.18.0.2"}, "listen is '198.18.0.2'"),
        ({"listen": "198.18.0.2:70000"}, "listen is"),
        ({"orchestrator": "198.18.0.1:0"}, "orchestrator is '198.18.0.1:0'"),
        ({"compute_flops": None, "pacing": True}, "pacing needs compute_flops"),
        ({"node": ""}, "node is empty"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    good = {
        "node": "h1",
        "orchestrator": "198.18.0.1:7000",
        "token": None,
        "listen": "198.18.0.2:7001",
        "state_dir": "/nowhere",
        "power": 30,
        "compute_flops": 2.4e9,
        "layer_overhead_s": 0.001,
        "memory_bytes": 10**6,
        "pacing": True,
        "emulated": True,
    }
    assert WorkerConfig.from_mapping(good).listen == ("198.18.0.2", 7001)
    with pytest.raises(ConfigError, match=words):
        WorkerConfig.from_mapping(good | changes)
