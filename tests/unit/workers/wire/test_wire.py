"""FrameSocket on a socket pair: sending, stalling, closing."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from worker_loopback import wait_until

from workers.errors import EndOfStream, WireError
from workers.wire import frame_socket, known_frames
from workers.wire import frames as wire
from workers.wire.frame_socket import FrameSocket
from workers.wire.frames import Form, Frame


@pytest.fixture
def pair() -> Iterator[tuple[FrameSocket, FrameSocket]]:
    ours, theirs = (FrameSocket(sock, 1 << 26, stall_timeout_s=0.2) for sock in socket.socketpair())
    with closing(ours), closing(theirs):
        yield ours, theirs


def test_frames_of_many_threads_do_not_mix(pair: tuple[FrameSocket, FrameSocket]) -> None:
    ours, theirs = pair

    def send(number: int) -> None:
        for _ in range(20):
            ours.send(Frame("x", fields={"n": number}, tensors={"t": np.full(30_000, number, np.int32)}))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(80):
        frame = theirs.receive()
        assert (frame.tensors["t"] == frame.fields["n"]).all()
    for thread in threads:
        thread.join(5)
    assert ours.bytes_sent == theirs.bytes_received


def test_a_form_goes_again_and_again_with_other_values(pair: tuple[FrameSocket, FrameSocket]) -> None:
    ours, theirs = pair
    shapes = {"x": (np.float32, (2, 5)), "places": (np.int64, (2, 3))}
    form = Form("rows", {"deployment": "d", "epoch": 1}, shapes)
    arrived = []
    for value in range(3):
        form.tensors["x"][:], form.tensors["places"][:] = value, [(value, 1, 2), (3, 4, value)]
        assert ours.send_form_at_once(form)
        arrived.append(theirs.receive())
    assert form.tensors["x"].ctypes.data % 64 == 0
    assert [frame.fields for frame in arrived] == [{"deployment": "d", "epoch": 1}] * 3
    assert [frame.tensors["x"].tolist() for frame in arrived] == [[[value] * 5] * 2 for value in range(3)]
    assert [frame.tensors["places"][1, 2] for frame in arrived] == [0, 1, 2]
    frame = form.frame()
    form.tensors["x"][:] = 9
    assert frame.tensors["x"][0, 0] == 2  # what waits keeps its values


def test_a_header_seen_before_is_not_believed_of_another_body(pair: tuple[FrameSocket, FrameSocket]) -> None:
    ours, theirs = pair
    ours.send(Frame("x", tensors={"t": np.zeros(8, np.uint8)}))
    theirs.receive()
    (head, body) = wire.encode(Frame("x", tensors={"t": np.zeros(8, np.uint8)}))
    longer = wire.PREFIX.pack(wire.MAGIC, wire.VERSION, 0, len(head) - wire.PREFIX.size, 16)
    ours._sock.sendall(longer + bytes(head[wire.PREFIX.size :]) + bytes(body) * 2)
    with pytest.raises(WireError, match="take 8 bytes, but the body has 16"):
        theirs.receive()


def test_headers_that_never_come_again_are_not_kept(pair: tuple[FrameSocket, FrameSocket]) -> None:
    ours, theirs = pair
    for number in range(1, 200):
        ours.send(Frame("x", tensors={"t": np.zeros(1, np.uint8)}, fields={"n": number}))
        ours.send(Frame("x", tensors={"t": np.zeros(1, np.uint8)}, id=number))
        assert theirs.receive().fields["n"] == number
        assert theirs.receive().id == number
    assert len(theirs._known) <= known_frames.MOST_KNOWN


def test_many_small_and_some_large_tensors_arrive(pair: tuple[FrameSocket, FrameSocket]) -> None:
    ours, theirs = pair
    rng = np.random.default_rng(0)
    sizes = [1, 7, 20_000, 0, 3_000_000, 5, 70_000, 1, 16_384, 16_385, 262_144, 2]
    tensors = {str(i): rng.integers(0, 255, size, dtype=np.uint8) for i, size in enumerate(sizes)}
    sender = threading.Thread(target=lambda: ours.send(Frame("x", tensors=tensors)))
    sender.start()
    received = theirs.receive().tensors
    sender.join(5)
    assert {name: tensor.tobytes() for name, tensor in received.items()} == {
        name: tensor.tobytes() for name, tensor in tensors.items()
    }


def test_a_value_that_cannot_be_packed_leaves_the_stream_usable(
    pair: tuple[FrameSocket, FrameSocket],
) -> None:
    ours, theirs = pair
    for bad in (
        Frame("x", fields={"a": object()}),
        Frame("x", tensors={"t": np.zeros(3, dtype=np.float64)}),
        Frame("", fields={}),
        Frame("x", id=1, reply_to=2),
        Frame("x", fields={"a": 2**70}),
    ):
        with pytest.raises(WireError):
            ours.send(bad)
    ours.send(Frame("good"))
    assert theirs.receive().kind == "good"


def test_the_error_for_a_dtype_names_tensor_and_way_out(pair: tuple[FrameSocket, FrameSocket]) -> None:
    with pytest.raises(WireError, match=r"'logits': dtype float64 has no place.*convert to one of f32"):
        pair[0].send(Frame("x", tensors={"logits": np.zeros(3)}))


def test_frames_that_come_in_one_piece_are_taken_one_by_one(pair: tuple[FrameSocket, FrameSocket]) -> None:
    ours, theirs = pair
    rows = np.arange(512, dtype=np.float32)
    for number in range(3):
        assert ours.send_at_once(Frame("x", fields={"n": number}, tensors={"t": rows + number}))
    assert theirs.more_waiting()
    for number in range(3):
        frame = theirs.receive()
        assert frame.fields == {"n": number}
        assert (frame.tensors["t"] == rows + number).all()
        assert theirs.more_waiting() == (number < 2)


def test_a_large_frame_after_small_ones_comes_whole(pair: tuple[FrameSocket, FrameSocket]) -> None:
    ours, theirs = pair
    large = np.arange(1 << 20, dtype=np.int32)

    def send() -> None:
        for number in range(20):
            ours.send(Frame("small", fields={"n": number}))
            ours.send(Frame("large", tensors={"t": large + number}))

    sender = threading.Thread(target=send)
    sender.start()
    for number in range(20):
        assert theirs.receive().fields == {"n": number}
        assert (theirs.receive().tensors["t"] == large + number).all()
    sender.join(5)


def test_what_cannot_go_at_once_is_not_begun(pair: tuple[FrameSocket, FrameSocket]) -> None:
    ours, theirs = pair
    small = Frame("x", tensors={"t": np.zeros(8000, dtype=np.uint8)})
    assert not ours.send_at_once(Frame("x", tensors={"t": np.zeros(1 << 15, dtype=np.uint8)}))
    sent = 0
    while ours.send_at_once(small):
        sent += 1
        assert sent < 10_000
    for _ in range(sent):
        assert theirs.receive().kind == "x"
    assert not ours.broken
    assert ours.send_at_once(small)


def test_large_tensors_begin_at_a_cache_line(pair: tuple[FrameSocket, FrameSocket]) -> None:
    ours, theirs = pair
    tensors = {"a": np.zeros((64, 512), np.float32), "b": np.ones((700, 512), np.float32)}
    for count in (1, 2):
        wanted = dict(list(tensors.items())[:count])
        sender = threading.Thread(target=lambda wanted=wanted: ours.send(Frame("x", tensors=wanted)))
        sender.start()
        assert {tensor.ctypes.data % 64 for tensor in theirs.receive().tensors.values()} == {0}
        sender.join(5)


def test_a_peer_that_does_not_read_breaks_the_stream_after_the_stall_time(
    pair: tuple[FrameSocket, FrameSocket],
) -> None:
    ours, _ = pair
    with pytest.raises(WireError, match="stood still"):
        ours.send(Frame("x", tensors={"t": np.zeros(1 << 22, dtype=np.uint8)}))
    assert ours.broken
    with pytest.raises(EndOfStream):
        ours.send(Frame("y"))


def test_a_sender_that_waits_behind_another_times_out_without_harm() -> None:
    ours, theirs = (FrameSocket(sock, 1 << 26) for sock in socket.socketpair())
    with closing(ours), closing(theirs):
        large = Frame("large", tensors={"t": np.zeros(1 << 24, dtype=np.uint8)})
        sender = threading.Thread(target=lambda: ours.send(large))
        sender.start()
        wait_until(lambda: ours.bytes_sent > 0, what="the large frame's beginning")
        with pytest.raises(TimeoutError):
            ours.send(Frame("small"), timeout_s=0.05)
        assert theirs.receive().kind == "large"
        sender.join(5)
        ours.send(Frame("small"), timeout_s=1)
        assert theirs.receive().kind == "small"


def test_a_peer_that_stops_in_the_middle_of_a_frame_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with closing(FrameSocket(ours, 100, stall_timeout_s=0.1)) as frames, closing(theirs):
        theirs.sendall(b"UT\x01\x00\x00")
        with pytest.raises(WireError, match="stood still"):
            frames.receive()


def test_a_peer_may_be_silent_between_frames_for_longer_than_the_stall_time() -> None:
    ours, theirs = socket.socketpair()
    with closing(FrameSocket(ours, 100, stall_timeout_s=0.02)) as frames, closing(theirs):
        timer = threading.Timer(0.3, lambda: FrameSocket(theirs).send(Frame("late")))
        timer.start()
        started_s = time.monotonic()
        assert frames.receive().kind == "late"
        assert time.monotonic() - started_s > 0.1
        timer.join()


def test_closing_wakes_a_thread_that_receives(pair: tuple[FrameSocket, FrameSocket]) -> None:
    ours, _ = pair
    endings: list[BaseException] = []

    def receive() -> None:
        try:
            ours.receive()
        except WireError as error:
            endings.append(error)

    receiver = threading.Thread(target=receive)
    receiver.start()
    ours.close()
    receiver.join(5)
    assert [type(ending) for ending in endings] == [EndOfStream]


def test_the_wire_loads_without_torch() -> None:
    modules = "workers.wire.connections, workers.wire.outbox, workers.device"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_sink_gets_the_body_in_pieces_and_the_stream_goes_on(
    pair: tuple[FrameSocket, FrameSocket],
) -> None:
    left, right = pair
    tensors = {"a": np.arange(5, dtype=np.float32), "b": np.arange(3, dtype=np.int8)}
    body = bytearray(23)

    def sink(header):
        assert [spec.name for spec in header.tensors] == ["a", "b"]
        yield memoryview(body)[:7]
        yield memoryview(body)[7:]

    left.send(Frame("update", tensors=tensors, reply_to=1))
    left.send(Frame("next"))
    frame = right.receive(lambda header: sink)
    assert (frame.kind, dict(frame.tensors)) == ("update", {})
    assert bytes(body) == tensors["a"].tobytes() + tensors["b"].tobytes()
    assert right.receive(lambda header: sink).kind == "next"


def test_a_dropped_body_leaves_the_stream_in_step(pair: tuple[FrameSocket, FrameSocket]) -> None:
    left, right = pair
    with ThreadPoolExecutor(1) as executor:
        sending = executor.submit(left.send, Frame("x", tensors={"a": np.ones(700_000, np.float32)}))
        assert right.receive(lambda header: wire.dropped).kind == "x"
        sending.result(10)
    left.send(Frame("next"))
    assert right.receive().kind == "next"


def test_a_sink_is_closed_when_the_connection_ends_in_a_body(
    pair: tuple[FrameSocket, FrameSocket],
) -> None:
    left, right = pair
    closed = []

    def sink(header):
        try:
            yield memoryview(bytearray(8))
        finally:
            closed.append(True)

    buffers = wire.encode(Frame("x", tensors={"a": np.ones(2, np.float32)}))
    left._sock.sendall(b"".join(buffers)[:-3])
    left.close()
    with pytest.raises(WireError, match="middle of a frame"):
        right.receive(lambda header: sink)
    assert closed == [True]


def test_memory_of_large_bodies_is_used_again_only_when_free(
    pair: tuple[FrameSocket, FrameSocket],
) -> None:
    left, right = pair
    held = []
    with ThreadPoolExecutor(1) as executor:
        for value in range(6):
            tensors = {"a": np.full((2, 200_000), value, np.float32), "b": np.full(9, value, np.float32)}
            sending = executor.submit(left.send, Frame("x", tensors=tensors))
            frame = right.receive()
            sending.result(10)
            held = [*held[-1:], frame]  # as a worker holds its version while the next one comes
            del frame
            for number, earlier in enumerate(held, start=value + 1 - len(held)):
                assert all((tensor == number).all() for tensor in earlier.tensors.values())
    assert len(right._bodies._kept) == frame_socket.BODIES_KEPT
