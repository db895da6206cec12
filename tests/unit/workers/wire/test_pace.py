"""What is said of a transfer's speed is of its second half, and only where TCP had got going by then."""

import socket
import threading
import time

import numpy as np
import pytest

from workers.wire.frame_socket import FrameSocket
from workers.wire.frames import Frame, encode
from workers.wire.pace import MIN_BODY_BYTES, Pace, Receipt, pace_of, read_receipt, round_trip_s

MB = 1_000_000


def arrived(*pieces, body=4 * MB):
    pace = Pace(body)
    for now_s, count in pieces:
        pace.add(count, now_s)
    return pace


def test_the_slow_first_half_does_not_count():
    pace = arrived((0.5, MB), (1.0, MB), (1.25, MB), (1.5, MB))
    assert pace.receipt(1.5, 0.1) == Receipt(payload_bytes=2 * MB, seconds=0.5, ended_s=1.5)


def test_a_window_that_slow_start_had_not_reached_says_nothing():
    pace = arrived((1.0, 2 * MB), (1.5, 2 * MB))
    assert pace.receipt(1.5, 0.51) is None  # 4 MB/s times 0.51 s: more than the 2 MB before
    assert pace.receipt(1.5, 0.49) is not None


def test_without_a_round_trip_or_in_no_time_nothing_is_said():
    pace = arrived((1.0, 2 * MB), (1.01, 2 * MB))
    assert pace.receipt(1.01, 0.001) is None
    assert arrived((1.0, 2 * MB), (1.5, 2 * MB)).receipt(1.5, None) is None
    assert pace_of(MIN_BODY_BYTES - 1) is None


def test_a_receipt_survives_being_told():
    told = Receipt(payload_bytes=2 * MB, seconds=0.5, ended_s=10.0).to_fields(13.0)
    assert read_receipt(told, most_bytes=4 * MB, most_s=4.0) == (2 * MB, 0.5, 3.0)


@pytest.mark.parametrize(
    "told",
    [
        None,
        7,
        {},
        {"bytes": 5 * MB, "seconds": 0.5, "ago_s": 0.0},  # more than was sent
        {"bytes": MB, "seconds": 3.0, "ago_s": 1.5},  # longer than it took
        {"bytes": MB, "seconds": 0.0, "ago_s": 0.0},
        {"bytes": MB, "seconds": float("nan"), "ago_s": 0.0},
        {"bytes": MB, "seconds": 1.0, "ago_s": -1.0},
        {"bytes": True, "seconds": 1.0, "ago_s": 0.0},
        {"bytes": MB, "seconds": "1", "ago_s": 0.0},
    ],
)
def test_what_a_node_cannot_have_seen_is_not_believed(told):
    assert read_receipt(told, most_bytes=4 * MB, most_s=4.0) is None


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    yield here, there
    here.close()
    there.close()


def trickle(sock, data, seconds):
    """Send evenly over so many seconds."""
    sock.setblocking(True)
    started_s, step = time.monotonic(), len(data) // 50
    for number, first in enumerate(range(0, len(data), step)):
        time.sleep(max(0.0, started_s + number * seconds / 50 - time.monotonic()))
        sock.sendall(data[first : first + step])


def test_a_frame_says_how_fast_it_arrived(pair):
    sender, receiver = pair
    data = b"".join(encode(Frame("reply", tensors={"x": np.zeros(MB, dtype=np.uint8)}, reply_to=1)))
    thread = threading.Thread(target=trickle, args=(sender, data, 0.5))
    thread.start()
    receipt = FrameSocket(receiver).receive().receipt
    thread.join()
    assert receipt is not None
    assert receipt.payload_bytes == pytest.approx(MB / 2, rel=0.1)
    assert receipt.payload_bytes / receipt.seconds == pytest.approx(2 * MB, rel=0.5)


def test_a_small_frame_says_nothing(pair):
    sender, receiver = pair
    FrameSocket(sender).send(Frame("reply", tensors={"x": np.zeros(10, dtype=np.uint8)}))
    assert FrameSocket(receiver).receive().receipt is None


def test_the_kernel_tells_the_round_trip_of_tcp_and_of_nothing_else(pair):
    sender, receiver = pair
    sender.sendall(b"x")
    assert receiver.recv(1) == b"x"
    assert 0 < round_trip_s(sender) < 1.0
    unix, other = socket.socketpair()
    with unix, other:
        assert round_trip_s(unix) is None
