"""Frames that are known word for word: taken at once, and never mistaken."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import closing

import numpy as np
import pytest

from workers.wire import frames as wire
from workers.wire import known_frames
from workers.wire.frame_socket import FrameSocket
from workers.wire.frames import PREFIX, Frame, Header, decode_header
from workers.wire.known_frames import KnownFrames


def rows(value: int, *, count: int = 1, epoch: int = 1) -> Frame:
    x, places = np.full((count, 6), value, np.float32), np.full((count, 3), value, np.int64)
    return Frame("rows", fields={"deployment": "d", "epoch": epoch}, tensors={"x": x, "places": places})


def whole(frame: Frame) -> bytes:
    return b"".join(wire.encode(frame))


def head_of(frame: Frame) -> tuple[bytes, Header]:
    head, *body = wire.encode(frame)
    body_len = sum(map(len, body))
    return bytes(head), decode_header(bytes(head[PREFIX.size :]), body_len=body_len, max_body_bytes=1 << 20)


def knowing(*frames: Frame) -> KnownFrames:
    known = KnownFrames()
    for frame in frames:
        known.learn(*head_of(frame))
    return known


def test_a_known_frame_is_taken_from_where_it_stands() -> None:
    known, read = knowing(rows(1)), memoryview(bytearray(b"..." + whole(rows(7)) + whole(rows(8))))
    first, size_bytes = known.take(read, 3, len(read)) or pytest.fail("the first is known")
    second, _ = known.take(read, 3 + size_bytes, len(read)) or pytest.fail("the second is known")
    read[:] = bytes(len(read))  # as the next reading does
    assert [int(frame.tensors["places"][0, 0]) for frame in (first, second)] == [7, 8]
    assert (first.kind, first.fields, first.id) == ("rows", {"deployment": "d", "epoch": 1}, None)
    assert first.tensors["x"].flags.writeable
    assert first.fields is second.fields  # the same words: `Routes` counts on it


def test_one_that_has_not_come_whole_is_left() -> None:
    known, read = knowing(rows(1)), memoryview(bytearray(whole(rows(7))))
    for end in range(len(read)):
        assert known.take(read, 0, end) is None
    assert known.take(read, 0, len(read)) is not None


@pytest.mark.parametrize("other", [rows(1, count=2), rows(1, epoch=2), Frame("rows", fields={"n": 1})])
def test_what_differs_in_a_word_is_not_known(other: Frame) -> None:
    read = memoryview(bytearray(whole(other)))
    assert knowing(rows(1)).take(read, 0, len(read)) is None


def test_no_more_are_kept_than_it_says() -> None:
    known = KnownFrames()
    for epoch in range(3 * known_frames.MOST_KNOWN):
        known.learn(*head_of(rows(1, epoch=epoch)))
        assert len(known) <= known_frames.MOST_KNOWN
    for frame in (Frame("rows", id=3, tensors=rows(1).tensors), Frame("rows", fields={"way": []})):
        before = len(known)
        known.learn(*head_of(frame))
        assert len(known) == before


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_in_whatever_pieces_is_what_was_sent(seed: int) -> None:
    stream = random.Random(seed)
    sent = [
        stream.choice(
            [
                rows(number, count=stream.choice((1, 4, 300)), epoch=stream.choice((1, 2))),
                Frame("other", fields={"n": number, "way": [number]}),
                Frame(
                    "rows", fields={"deployment": "d", "epoch": 1}, tensors=rows(number).tensors, id=number
                ),
            ]
        )
        for number in range(1, 60)
    ]
    ours, theirs = socket.socketpair()
    receiver = FrameSocket(theirs, 1 << 20)

    def send() -> None:
        everything = b"".join(map(whole, sent))
        while everything:
            size = stream.choice((1, 16, 100, 700, 5000, 40_000))
            ours.sendall(everything[:size])
            everything = everything[size:]

    with ours, closing(receiver):
        thread = threading.Thread(target=send)
        thread.start()
        arrived = [receiver.receive() for _ in sent]
        thread.join(5)
    for before, after in zip(sent, arrived, strict=True):
        assert (after.kind, after.fields, after.id) == (before.kind, before.fields, before.id)
        assert after.tensors.keys() == before.tensors.keys()
        for name, tensor in before.tensors.items():
            np.testing.assert_array_equal(after.tensors[name], tensor)
