"""Channels over real TLS on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from worker_loopback import TestAuthority, listen, wait_until

from workers.errors import (
    ChannelClosed,
    ConnectFailed,
    IdentityMismatch,
    LinkError,
    ModelError,
    RemoteError,
    RequestRefused,
    RequestTimeout,
    WireError,
)
from workers.wire import connections, link, tls
from workers.wire.frames import Frame


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    return TestAuthority(tmp_path_factory.mktemp("authority"))


class Orchestrator:
    """A served listener that records what it sees."""

    def __init__(self, authority: TestAuthority, **options: object) -> None:
        self.release = threading.Event()
        self.seen: list[Frame] = []
        self.closed: list[tuple[str | None, str]] = []
        self.server = connections.serve(
            listen(),
            authority.orchestrator_context(),
            handler=self.handle,
            on_close=lambda channel, reason: self.closed.append((channel.peer_name, reason)),
            **options,  # type: ignore[arg-type]
        )
        self.port = self.server.port

    def handle(self, channel: link.Channel, frame: Frame) -> link.Reply | None:
        match frame.kind:
            case "echo":
                return link.Reply(frame.fields, frame.tensors)
            case "who":
                return link.Reply({"name": channel.peer_name, "serial": str(channel.peer_serial)})
            case "hang":
                self.release.wait(20)
            case "refuse":
                raise RequestRefused("no-such-thing", "there is none")
            case "fail":
                raise ZeroDivisionError("a bug")
            case "impossible":
                raise ModelError("layer 9 of 8")
            case "break":
                raise WireError("nonsense")
            case "ask-back":
                return link.Reply(channel.request("question", timeout_s=5).fields)
            case _:
                self.seen.append(frame)
        return None

    def close(self) -> None:
        self.release.set()
        self.server.close()


@pytest.fixture
def orchestrator(authority: TestAuthority) -> Iterator[Orchestrator]:
    with closing(Orchestrator(authority)) as served:
        yield served


def connect(authority: TestAuthority, port: int, name: str = "h1", **options: object) -> link.Channel:
    return connections.connect(
        "127.0.0.1",
        port,
        context=authority.identity(name).client_context(),
        expected_name=tls.ORCHESTRATOR,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def channel(authority: TestAuthority, orchestrator: Orchestrator) -> Iterator[link.Channel]:
    with closing(connect(authority, orchestrator.port)) as connected:
        yield connected


def test_a_reply_carries_fields_and_tensors(channel: link.Channel) -> None:
    rows = np.arange(300_000, dtype=np.float32).reshape(3, -1)
    reply = channel.request("echo", {"n": 1, "text": "ä"}, {"x": rows, "none": rows[:0]})
    assert reply.fields == {"n": 1, "text": "ä"}
    np.testing.assert_array_equal(reply.tensors["x"], rows)
    assert reply.tensors["none"].shape == (0, 100_000)


def test_the_peer_is_named_by_its_certificate(channel: link.Channel) -> None:
    fields = channel.request("who").fields
    assert fields["name"] == "h1"
    assert int(fields["serial"]) > 0


def test_many_requests_at_once_get_their_own_replies(channel: link.Channel) -> None:
    wrong: list[int] = []

    def ask(number: int) -> None:
        payload = np.full(50_000 + number, number, dtype=np.int32)
        reply = channel.request("echo", {"number": number}, {"x": payload})
        if reply.fields["number"] != number or not np.array_equal(reply.tensors["x"], payload):
            wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_both_sides_ask(authority: TestAuthority, orchestrator: Orchestrator) -> None:
    def answer(_channel: link.Channel, frame: Frame) -> link.Reply:
        return link.Reply({"answer": frame.kind})

    with closing(connect(authority, orchestrator.port, handler=answer)) as channel:
        assert channel.request("ask-back").fields == {"answer": "question"}


def test_a_refusal_arrives_with_code_and_detail(channel: link.Channel) -> None:
    with pytest.raises(RemoteError) as caught:
        channel.request("refuse")
    assert (caught.value.code, caught.value.detail) == ("no-such-thing", "there is none")


def test_a_failing_handler_costs_its_request_only(channel: link.Channel) -> None:
    with pytest.raises(RemoteError, match="internal: ZeroDivisionError"):
        channel.request("fail")
    assert channel.request("echo", {"still": "here"}).fields == {"still": "here"}


def test_what_cannot_be_done_is_answered_with_its_reason(channel: link.Channel) -> None:
    with pytest.raises(RemoteError, match="failed: layer 9 of 8"):
        channel.request("impossible")


def test_a_request_without_an_answer_times_out_and_the_channel_lives(channel: link.Channel) -> None:
    with pytest.raises(RequestTimeout, match=r"no reply to 'hang' within 0\.05 s"):
        channel.request("hang", timeout_s=0.05)
    assert channel.request("echo", {"a": 1}).fields == {"a": 1}


def test_more_requests_than_are_served_are_answered_busy(
    channel: link.Channel, orchestrator: Orchestrator
) -> None:
    outcomes: list[str] = []

    def ask() -> None:
        try:
            channel.request("hang", timeout_s=15)
            outcomes.append("served")
        except RemoteError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(link.MAX_REQUESTS_SERVED + 3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: outcomes.count("busy") == 3, what="three requests answered busy")
    orchestrator.release.set()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == ["busy"] * 3 + ["served"] * link.MAX_REQUESTS_SERVED


def test_notifications_are_handled_in_order(channel: link.Channel, orchestrator: Orchestrator) -> None:
    for index in range(500):
        channel.notify("tokens", {"index": index})
    channel.request("echo")
    wait_until(lambda: len(orchestrator.seen) == 500, what="all notifications")
    assert [frame.fields["index"] for frame in orchestrator.seen] == list(range(500))


def test_requests_that_wait_fail_when_the_peer_goes(
    channel: link.Channel, orchestrator: Orchestrator
) -> None:
    failures: list[Exception] = []

    def ask() -> None:
        try:
            channel.request("hang", timeout_s=15)
        except LinkError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: orchestrator.server.channels, what="the connection")
    orchestrator.server.close()
    thread.join(10)
    assert [type(error) for error in failures] == [ChannelClosed]
    with pytest.raises(ChannelClosed):
        channel.notify("token")


def test_closing_here_is_seen_there_once(channel: link.Channel, orchestrator: Orchestrator) -> None:
    channel.request("echo")
    channel.close()
    channel.close()
    assert channel.wait_closed(5)
    wait_until(lambda: orchestrator.closed, what="the other side's on_close")
    assert orchestrator.closed == [("h1", "the peer closed the connection")]
    assert orchestrator.server.channels == ()


def test_a_handler_that_finds_the_protocol_broken_closes_its_connection_only(
    channel: link.Channel, authority: TestAuthority, orchestrator: Orchestrator
) -> None:
    with closing(connect(authority, orchestrator.port, "h2")) as other:
        channel.notify("break")
        assert channel.wait_closed(5)
        assert other.request("who").fields["name"] == "h2"


def test_silent_and_garbage_peers_disturb_nobody(
    authority: TestAuthority, orchestrator: Orchestrator
) -> None:
    address = ("127.0.0.1", orchestrator.port)
    with socket.create_connection(address), socket.create_connection(address) as garbage:
        garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        with closing(connect(authority, orchestrator.port)) as channel:
            assert channel.request("echo", {"a": 1}, timeout_s=5).fields == {"a": 1}


def test_a_peer_that_breaks_a_frame_loses_its_connection_only(
    authority: TestAuthority, orchestrator: Orchestrator, channel: link.Channel
) -> None:
    context = authority.identity("h9").client_context()
    sock = tls.dial("127.0.0.1", orchestrator.port, context=context, expected_name=tls.ORCHESTRATOR)
    with closing(sock):
        sock.sendall(b"UT\x01\x00" + b"\xff" * 12)
        assert sock.recv(1) == b""
    wait_until(lambda: orchestrator.closed, what="the broken connection's end")
    assert orchestrator.closed[0][0] == "h9"
    assert "header of 4294967295 bytes" in orchestrator.closed[0][1]
    assert channel.request("who").fields["name"] == "h1"


def test_a_worker_without_certificate_gets_small_frames_and_little_time(authority: TestAuthority) -> None:
    with closing(Orchestrator(authority, anonymous_lifetime_s=0.3)) as served:
        context = tls.client_context(ca_path=authority.ca_path)

        def anonymous() -> link.Channel:
            return connections.connect(
                "127.0.0.1", served.port, context=context, expected_name=tls.ORCHESTRATOR
            )

        with closing(anonymous()) as channel:
            assert channel.request("who").fields["name"] is None
            assert channel.wait_closed(5)
        with closing(anonymous()) as channel, pytest.raises((ChannelClosed, RemoteError)):
            channel.request("echo", tensors={"x": np.zeros(10, dtype=np.float32)})


def test_a_channel_can_be_turned_away_before_it_is_read(authority: TestAuthority) -> None:
    def refuse(channel: link.Channel) -> None:
        raise RequestRefused("revoked", str(channel.peer_name))

    with closing(Orchestrator(authority, on_channel=refuse)) as served:
        with closing(connect(authority, served.port)) as channel:
            assert channel.wait_closed(5)
        wait_until(lambda: served.server.channels == (), what="the server has dropped the connection")
        assert served.seen == []


def test_an_orchestrator_of_another_authority_is_not_believed(
    authority: TestAuthority, orchestrator: Orchestrator, tmp_path: Path
) -> None:
    stranger = TestAuthority(tmp_path / "stranger")
    with pytest.raises(IdentityMismatch):
        connect(stranger, orchestrator.port)


def test_a_node_of_another_authority_gets_no_connection(
    authority: TestAuthority, orchestrator: Orchestrator, tmp_path: Path
) -> None:
    stranger = TestAuthority(tmp_path / "stranger").identity("h1")
    context = tls.client_context(
        ca_path=authority.ca_path, certificate_path=stranger.certificate_path, key_path=stranger.key_path
    )
    with pytest.raises(LinkError):  # TLS 1.3: the client learns of it with its first read
        connections.connect(
            "127.0.0.1", orchestrator.port, context=context, expected_name=tls.ORCHESTRATOR
        ).request("echo", timeout_s=5)
    assert orchestrator.server.channels == ()


def test_a_node_cannot_pose_as_the_orchestrator(authority: TestAuthority) -> None:
    server = connections.serve(
        listen(), authority.identity("h2").server_context(), handler=lambda _channel, _frame: None
    )
    with closing(server), pytest.raises(IdentityMismatch, match="names 'h2'"):
        connect(authority, server.port)


def test_nobody_listening_is_a_clear_failure(authority: TestAuthority) -> None:
    with closing(listen()) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(ConnectFailed, match=f"127.0.0.1:{port}: cannot connect: Connection refused"):
        connect(authority, port)


def test_a_listener_that_never_shakes_hands_times_out(authority: TestAuthority) -> None:
    with closing(listen()) as sock, pytest.raises(ConnectFailed, match="timed out"):
        connect(authority, sock.getsockname()[1], timeout_s=0.2)


def test_large_transfers_both_ways_at_once_do_not_lock_up(
    channel: link.Channel, orchestrator: Orchestrator
) -> None:
    payload = np.random.default_rng(1).integers(0, 255, size=24_000_000, dtype=np.uint8)
    sums: list[int] = []

    def ask() -> None:
        sums.append(int(channel.request("echo", tensors={"x": payload}).tensors["x"].sum()))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sums == [int(payload.sum())] * 3


@pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="this system names no congestion control")
@pytest.mark.parametrize("here", [True, False])
def test_only_what_stays_within_the_machine_goes_unpaced_in_small_buffers(
    here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not here:
        monkeypatch.setattr(tls, "_within_machine", lambda sock: False)
    with closing(listen()) as listening, socket.create_connection(listening.getsockname()) as sock:
        before = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
        tls.tune(sock)
        after = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
        grown = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert after == (tls.UNPACED if here else before)
    assert (grown == 2 * tls.NEAR_BUFFER_BYTES) is here  # the kernel doubles it (socket(7))
