"""What streaming clients report, and when memory is flat."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.split_overhead import figures, streams


def token(index: int, value: int = 7, margin: float = 1.0) -> dict[str, Any]:
    return {"utopia": {"index": index, "token": value, "margin": margin}}


WHOLE = [token(0), token(1), token(2)]


class Server(ThreadingHTTPServer):
    """Answers requests with the streams that a test queues, the first of them for ever."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.events: list[Any] = WHOLE
        self.ending = "data: [DONE]\n\n"
        self.status = 200
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        self.end_headers()
        for event in self.server.events:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(self.server.ending.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_whole_answer_is_read_with_when_its_tokens_came(server: Server) -> None:
    answer = streams.read_stream(server.url, "m", "x")
    assert answer.tokens == (7, 7, 7)
    assert list(answer.came_s) == sorted(answer.came_s)


@pytest.mark.parametrize("events", [[token(0), token(2)], [token(0), token(0)], [token(1)]])
def test_a_token_that_was_lost_or_came_twice_is_told(server: Server, events: list[Any]) -> None:
    server.events = events
    with pytest.raises(streams.Misplaced, match="was due"):
        streams.read_stream(server.url, "m", "x")


def test_an_answer_that_breaks_off_is_an_error(server: Server) -> None:
    server.ending = ""
    with pytest.raises(streams.Broken, match="without"):
        streams.read_stream(server.url, "m", "x")


def test_an_error_in_the_stream_and_a_refusal_are_told(server: Server) -> None:
    server.events = [{"error": {"message": "the ring broke"}}]
    with pytest.raises(streams.Broken, match="the ring broke"):
        streams.read_stream(server.url, "m", "x")
    server.status = 503
    with pytest.raises(streams.Broken, match="503"):
        streams.read_stream(server.url, "m", "x")


def test_all_clients_answers_are_counted(server: Server) -> None:
    outcome = streams.load(server.url, "m", clients=4, seconds=0.3)
    assert outcome.answers >= 4
    assert outcome.tokens == 3 * outcome.answers
    assert (outcome.differing, outcome.misplaced, outcome.errors) == (0, 0, {})


def answer(*tokens: int, margin: float = 1.0) -> streams.Answer:
    return streams.Answer(tokens=tokens, margins=(margin,) * len(tokens), came_s=(0.1,) * len(tokens))


def test_an_answer_that_differs_counts_unless_it_differs_at_a_tie() -> None:
    outcome = streams.Outcome()
    outcome.take(answer(1, 2, 3), answer(1, 2, 3))
    outcome.take(answer(1, 2, 4), answer(1, 2, 3))
    outcome.take(answer(1, 2, 4), answer(1, 2, 3, margin=1e-5))
    outcome.take(answer(1, 2), answer(1, 2, 3, margin=1e-5))
    assert (outcome.answers, outcome.differing, outcome.ties) == (4, 2, 1)


def test_memory_is_compared_between_the_middle_and_the_last_third() -> None:
    assert streams.growth([1, 1, 1, 10, 10, 10, 11, 11, 11]) == pytest.approx(1.1)
    assert streams.growth([1, 2, 3]) is None


def test_errors_and_growth_miss_their_targets() -> None:
    row = {
        "part": "clients",
        "arm": "streams",
        "errors": 1,
        "tokens_lost_or_doubled": 0,
        "answers_that_differ": 0,
        "memory_growth_most": 1.2,
    }
    met = {target.name: target.met for target in figures.targets([row]) if target.name.startswith("clients")}
    assert met == {
        "clients_errors": False,
        "clients_tokens_lost_or_doubled": True,
        "clients_answers_that_differ": True,
        "clients_memory_growth_most": False,
    }
