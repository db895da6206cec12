"""The event stream among readers that ask nonsense, say half of it, vanish, or come in numbers."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from northbound_client import BASE, TOKEN, Client, NorthboundController, Request, WSGIApplication
from reserved_ports import reserved_port

from ryu_apps.access import Access
from ryu_apps.events import Reader
from ryu_apps.northbound.events import MAX_READERS, MAX_STRANGERS

PATH = f"{BASE}/events"
ROOT = Path(__file__).resolve().parents[2]
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def client() -> Client:
    return Client()


def ask(client: Client, path: str = PATH, **headers: str) -> Any:
    """Ask for the stream; its body, which never ends, is left alone."""
    request = Request.blank(path, headers=headers)
    answer = request.get_response(client.app)
    answer.app_iter.close() if hasattr(answer.app_iter, "close") else None
    return answer


@FUZZ
@given(query=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60))
def test_no_query_is_taken_and_none_is_a_fault(client: Client, query: str) -> None:
    answer = ask(client, f"{PATH}?{query.replace('#', '')}")
    assert answer.status_int in (200, 400)
    if answer.status_int == 400:
        assert answer.content_type == "application/problem+json"
    assert client.world.parts.events.readers == set()


@FUZZ
@given(
    name=st.sampled_from(
        ["Accept", "Accept-Encoding", "Authorization", "Last-Event-ID", "Cache-Control", "Range", "Cookie"]
    ),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=80),
)
def test_no_header_is_a_fault(client: Client, name: str, value: str) -> None:
    answer = ask(client, **{name: value})
    assert answer.status_int in (200, 400, 401)
    assert client.world.parts.events.readers == set()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_stream_is_only_read(client: Client, method: str) -> None:
    assert client.ask(PATH, method=method, body=b"{}").status_int == 405


def test_asking_for_its_head_takes_no_place(client: Client) -> None:
    assert client.ask(PATH, method="HEAD").status_int == 200
    assert client.world.parts.events.readers == set()


def test_where_reads_need_the_token_the_stream_does_too() -> None:
    client = Client()
    api = _with_access(client, Access(token=TOKEN, reads_need_token=True))
    assert Request.blank(PATH).get_response(api).status_int == 401
    wrong = Request.blank(PATH, headers={"Authorization": "Bearer wrong"})
    assert wrong.get_response(api).status_int == 401


def _with_access(client: Client, access: Access) -> WSGIApplication:
    from ryu_apps.northbound import Api

    app = WSGIApplication()
    app.register(NorthboundController, Api.of(client.world.parts, access=access))
    return app


def fill(client: Client, count: int, *, known: bool) -> list[int]:
    woken: list[int] = []
    for _ in range(count):
        client.world.parts.events.readers.add(Reader(wake=lambda: woken.append(1), known=known))
    return woken


def test_readers_without_the_token_leave_room_for_those_with_it() -> None:
    client = Client()
    woken = fill(client, MAX_STRANGERS, known=False)
    refused = ask(client)
    assert refused.status_int == 503
    assert f"{MAX_STRANGERS} of them without the token" in refused.json["detail"]
    assert len(woken) == MAX_STRANGERS  # each looks whether its reader is still there
    assert ask(client, Authorization=f"Bearer {TOKEN}").status_int == 200
    fill(client, MAX_READERS - MAX_STRANGERS, known=True)
    assert ask(client, Authorization=f"Bearer {TOKEN}").status_int == 503


def test_where_there_is_no_token_all_places_are_everybodys() -> None:
    client = Client()
    client.app = _with_access(client, Access(token=None, reads_need_token=False))
    fill(client, MAX_READERS - 1, known=False)
    assert ask(client).status_int == 200
    fill(client, 1, known=False)
    assert ask(client).status_int == 503


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A controller process without switches, whose stream says that it is there."""
    log = tmp_path_factory.mktemp("events") / "log"
    with contextlib.ExitStack() as stack:
        openflow, rest = (stack.enter_context(reserved_port()) for _ in range(2))
        command = [sys.executable, "-m", "ryu_apps.launcher", "--noverbose", "--train-interval", "0"]
        command += ["--ofp-tcp-listen-port", str(openflow), "--wsapi-port", str(rest), "ryu_apps/manager.py"]
        file = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        try:
            wait_for(lambda: status(rest, b"GET /healthz HTTP/1.0\r\n\r\n") == 200, seconds=30)
            yield rest
        finally:
            process.kill()
            process.wait(10)
    assert b"Traceback" not in log.read_bytes()


def wait_for(check: Any, *, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if check():
                return
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def opened(port: int, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.sendall(sent)
    return connection


def status(port: int, sent: bytes) -> int | None:
    """Return the status of the first answer to what is sent; None if it just ends."""
    with opened(port, sent) as connection:
        return status_of(connection)


def status_of(connection: socket.socket) -> int | None:
    with contextlib.suppress(ConnectionResetError):
        line = connection.makefile("rb").readline()
        return int(line.split()[1]) if line.startswith(b"HTTP/") else None
    return None


def follows(connection: socket.socket) -> bool:
    """Tell whether a stream has begun: its greeting is there."""
    found = b""
    while b"utopia northbound events" not in found:
        block = connection.recv(4096)
        if not block or b" 503 " in found + block:
            return False
        found += block
    return True


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
        f"GET {PATH} HTTP/9.9\r\n\r\n".encode(),
        f"GET {PATH}?{'a' * 9000} HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
        f"GET {PATH} HTTP/1.1\r\nHost: h\r\nX: {'a' * 70000}\r\n\r\n".encode(),
        f"GET {PATH} HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n".encode(),
        f"GET {PATH} HTTP/1.1\r\nHost: h\r\n\xff\xfe: \x80\r\n\r\n".encode("latin-1"),
        f"GET {PATH} HTTP/1.1\r\nHost: h\r\nContent-Length: -7\r\n\r\n".encode(),
        f"GET {PATH} HTTP/1.1\r\nHost: h\r\nContent-Length: many\r\n\r\n".encode(),
        f"GET {PATH}?%ff%00=%zz HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
    ],
)
def test_what_is_no_request_is_no_fault_of_the_server(port: int, sent: bytes) -> None:
    with opened(port, sent) as connection:
        with contextlib.suppress(OSError):  # it may have answered and closed
            connection.shutdown(socket.SHUT_WR)
        answered = status_of(connection)
    assert answered is None or answered < 500
    assert status(port, REQUEST) == 200


def test_a_reader_that_closes_its_own_half_is_served_on(port: int) -> None:
    with opened(port, REQUEST) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert follows(connection)


def test_half_a_request_takes_no_place(port: int) -> None:
    halves = [opened(port, REQUEST[: len(REQUEST) // 2]) for _ in range(MAX_READERS)]
    try:
        with opened(port, REQUEST) as connection:
            assert follows(connection)
    finally:
        for half in halves:
            half.close()


def _grown(readers: list[socket.socket], port: int) -> int:
    """Add readers as long as they are let in (those of earlier tests may not have been missed yet)."""
    while len(readers) < MAX_READERS:
        reader = opened(port, REQUEST)
        if not follows(reader):
            reader.close()
            break
        readers.append(reader)
    return len(readers)


def test_readers_are_bounded_and_the_places_of_those_who_vanish_are_soon_free(port: int) -> None:
    readers: list[socket.socket] = []
    try:
        wait_for(lambda: _grown(readers, port) == MAX_READERS)
        assert status(port, REQUEST) == 503
        assert status(port, b"GET /healthz HTTP/1.0\r\n\r\n") == 200
    finally:
        for reader in readers:
            reader.close()
    wait_for(lambda: status(port, REQUEST) == 200, seconds=8)
