"""The API under its real server: streams, readers that vanish, an end that comes when asked for."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack

import pytest
import requests
from orchestrator_fakes import FakeGeneration

from orchestrator.api.app import ApiServer
from orchestrator.errors import Unavailable


@pytest.fixture
def served(make_world):
    made = make_world()
    made.server = ApiServer(made.http.application, host="127.0.0.1", port=0)
    made.server.start()
    made.url = f"http://127.0.0.1:{made.server.port}"
    made.http.post("/api/v1/jobs", json={})
    yield made
    made.events.close()
    made.server.stop()


def until(condition, timeout_s=15.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_events_arrive_as_they_happen_on_many_streams_beside_other_requests(served):
    streams = [
        requests.get(f"{served.url}/api/v1/jobs/job-1/events", stream=True, timeout=5) for _ in range(20)
    ]
    until(lambda: served.events.watchers() == 20)
    assert requests.get(f"{served.url}/healthz", timeout=5).json() == {"status": "ok"}
    served.events.publish("job-1", "epoch", {"epoch": 0})
    for stream in streams:
        lines = stream.iter_lines(chunk_size=1, decode_unicode=True)
        assert next(line for line in lines if line.startswith("event")) == "event: epoch"
        stream.close()


def test_two_hundred_readers_are_served_at_once_and_others_beside_them(served):
    request = b"GET /api/v1/jobs/job-1/events HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as readers:
        for _ in range(200):
            reader = readers.enter_context(socket.create_connection(("127.0.0.1", served.server.port)))
            reader.sendall(request)
        until(lambda: served.events.watchers() == 200)
        assert requests.get(f"{served.url}/healthz", timeout=5).json() == {"status": "ok"}
    until(lambda: served.events.watchers() == 0)


def test_a_reader_that_vanishes_is_forgotten(served):
    with socket.create_connection(("127.0.0.1", served.server.port)) as reader:
        reader.sendall(b"GET /api/v1/jobs/job-1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: served.events.watchers() == 1)
    until(lambda: served.events.watchers() == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_answer_whether_it_is_streamed_or_not(served, stream):
    served.http.post("/api/v1/deployments", json={})
    generation = served.deployments.generation = FakeGeneration([{}])
    said = {"text": "a", "token": 5, "epoch": 1, "index": 0, "margin": 0.5, "elapsed_s": 0.1, "replayed": 0}
    begun = threading.Event()

    def chunks():
        deadline = time.monotonic() + 15
        while not generation.cancelled and time.monotonic() < deadline:
            begun.set()
            time.sleep(0.01)
            yield said
        yield {"finish_reason": "length", "detail": None}

    generation.chunks = chunks
    body = json.dumps({"model": "dep-1", "prompt": "x", "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", served.server.port)) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        assert begun.wait(10)
        assert not generation.cancelled
    until(lambda: generation.cancelled, timeout_s=10)


def test_the_sender_of_a_body_beyond_the_limit_is_told_so_instead_of_cut_off(served):
    answer = requests.post(f"{served.url}/api/v1/jobs", data=b"x" * 6_000_000, timeout=10)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_port_in_use_is_named_with_the_way_out(served):
    with pytest.raises(
        Unavailable, match=rf"port {served.server.port}: Address already in use; change api_port"
    ):
        ApiServer(served.http.application, host="127.0.0.1", port=served.server.port)


def test_stopping_is_prompt_although_connections_are_kept_open(served):
    session = requests.Session()
    session.get(f"{served.url}/healthz", timeout=5)
    started = time.monotonic()
    served.server.stop()
    assert time.monotonic() - started < 2
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{served.url}/healthz", timeout=2)


def test_another_waking_of_the_server_does_not_come_between_its_stop(served, monkeypatch):
    trigger = served.server._server.trigger
    pull = trigger._physical_pull

    def pull_after_another():
        pull()
        deadline = time.monotonic() + 0.3
        while not trigger._closed and time.monotonic() < deadline:
            time.sleep(0.01)
        pull()

    monkeypatch.setattr(trigger, "_physical_pull", pull_after_another)
    served.server.stop()
    assert not served.server._thread.is_alive()
