"""Large frames leave one after another, and nobody is held up by one that does not get on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from workers.errors import EndOfStream, WireError
from workers.wire import bulk
from workers.wire.frame_socket import FrameSocket
from workers.wire.frames import Frame

LARGE = {"w": np.arange(3_000_000, dtype=np.float32)}
"""More than the buffers of a connection take, or it would be gone before anybody looks."""


class Line:
    """A connection whose sending end sends in a thread of its own."""

    def __init__(self) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        self.near = FrameSocket(socket.create_connection(listening.getsockname()))
        self.far_socket, _ = listening.accept()
        listening.close()
        self.far = FrameSocket(self.far_socket)
        self.failed: list[Exception] = []

    def send(self, tensors: dict[str, np.ndarray]) -> None:
        def act() -> None:
            try:
                self.near.send(Frame("some", tensors=tensors), timeout_s=20)
            except (EndOfStream, WireError) as error:
                self.failed.append(error)

        self.thread = threading.Thread(target=act, daemon=True)
        self.thread.start()

    def take(self) -> Frame:
        return self.far.receive()

    def arrives_within(self, seconds: float) -> bool:
        self.far_socket.setblocking(True)
        self.far_socket.settimeout(seconds)
        try:
            return bool(self.far_socket.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False
        finally:
            self.far_socket.setblocking(False)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def lines() -> Iterator[tuple[Line, Line]]:
    pair = Line(), Line()
    yield pair
    for line in pair:
        line.close()
    assert not bulk._lane.locked()


def test_a_large_frame_leaves_after_the_one_before(lines, monkeypatch) -> None:
    monkeypatch.setattr(bulk, "LONGEST_WAIT_S", 20.0)
    turn = bulk.Turn(wanted=True, most_s=1.0)
    lines[0].send(LARGE)
    assert not lines[0].arrives_within(0.1)
    turn.end()
    assert (lines[0].take().tensors["w"] == LARGE["w"]).all()


def test_a_small_frame_waits_for_nobody(lines) -> None:
    turn = bulk.Turn(wanted=True, most_s=1.0)
    lines[0].send({"w": np.arange(1000)})
    assert lines[0].take().tensors["w"].size == 1000
    turn.end()


def test_one_whose_receiver_does_not_keep_up_lets_the_next_begin(lines, monkeypatch) -> None:
    monkeypatch.setattr(bulk, "LONGEST_WAIT_S", 20.0)
    lines[0].send(LARGE)
    assert lines[0].arrives_within(10)
    lines[1].send(LARGE)
    assert lines[1].take().tensors["w"].size == 3_000_000
    assert lines[0].thread.is_alive()
    assert (lines[0].take().tensors["w"] == LARGE["w"]).all()


def test_nobody_waits_for_a_turn_for_long(lines, monkeypatch) -> None:
    monkeypatch.setattr(bulk, "LONGEST_WAIT_S", 0.05)
    turn = bulk.Turn(wanted=True, most_s=1.0)
    lines[0].send(LARGE)
    assert lines[0].take().tensors["w"].size == 3_000_000
    turn.end()


def test_a_frame_that_is_cut_off_ends_its_turn(lines) -> None:
    lines[0].send(LARGE)
    assert lines[0].arrives_within(10)
    lines[0].far.close()
    lines[0].thread.join(10)
    assert lines[0].failed
    assert bulk.Turn(wanted=True, most_s=0.0)._held
    bulk._lane.release()


def test_what_is_left_of_a_frame_is_not_kept_back_for_a_whole_segment(lines) -> None:
    for _ in range(3):
        lines[0].send({"w": np.zeros(bulk.LARGE_BYTES + 1, np.uint8)})
        assert lines[0].take().tensors["w"].size == bulk.LARGE_BYTES + 1
        lines[0].thread.join(10)
        cork = lines[0].near._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)
        assert cork == 0
