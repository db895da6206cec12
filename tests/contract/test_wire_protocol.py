"""docs/wire_protocol.md, section Frame, byte by byte: what is written down is sent, and only that is taken.

Each rule is broken once on a real socket, and random bytes are thrown at the decoder: whatever a peer
sends, the answer is a frame or a WireError, and nothing is allocated for sizes that are not allowed.
"""

from __future__ import annotations

import math
import socket
import struct
import threading
import tracemalloc
from contextlib import closing, suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.errors import EndOfStream, WireError
from workers.wire.frame_socket import FrameSocket
from workers.wire.frames import DTYPES, Frame, decode_header, decode_prefix, encode

LIMIT = 1 << 20


def message(
    header: Any, body: bytes = b"", *, magic: bytes = b"UT", version: int = 1, flags: int = 0
) -> bytes:
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    return magic + struct.pack(">BBIQ", version, flags, len(packed), len(body)) + packed + body


def receive(data: bytes, *, limit: int = LIMIT) -> Frame:
    """Receive one frame from a peer that sends `data` and closes."""
    ours, theirs = socket.socketpair()
    with closing(FrameSocket(ours, limit, stall_timeout_s=5)) as frames:

        def send() -> None:
            with closing(theirs), suppress(OSError):  # the receiver may refuse before reading everything
                theirs.sendall(data)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            return frames.receive()
        finally:
            frames.shutdown()
            sender.join(5)


def test_a_frame_looks_as_documented() -> None:
    x = np.array([[1, 2, 3]], dtype=np.int16)
    frame = Frame("echo", fields={"a": 1}, tensors={"x": x}, id=7)
    sent = b"".join(encode(frame))
    header_len = struct.unpack(">I", sent[4:8])[0]
    assert sent[:4] == b"UT\x01\x00"
    assert struct.unpack(">Q", sent[8:16]) == (6,)
    assert msgpack.unpackb(sent[16 : 16 + header_len]) == {
        "kind": "echo",
        "fields": {"a": 1},
        "id": 7,
        "tensors": [["x", "i16", [1, 3]]],
    }
    assert sent[16 + header_len :] == b"\x01\x00\x02\x00\x03\x00"


def test_tensors_are_little_endian_and_in_c_order_whatever_they_were() -> None:
    big = np.arange(6, dtype=">f4").reshape(2, 3).T
    received = receive(b"".join(encode(Frame("x", tensors={"t": big}))))
    np.testing.assert_array_equal(received.tensors["t"], big)
    assert received.tensors["t"].dtype == np.dtype("<f4")


MALFORMED = {
    "wrong magic": message({"kind": "x"}, magic=b"HT"),
    "another version": message({"kind": "x"}, version=2),
    "flags": message({"kind": "x"}, flags=1),
    "a huge header": b"UT\x01\x00" + struct.pack(">IQ", 2**32 - 1, 0),
    "a huge body": b"UT\x01\x00" + struct.pack(">IQ", 16, 2**63),
    "a header that is no map": message([1, 2]),
    "a header that is no msgpack": message(b"\xc1\xc1\xc1"),
    "a header with bytes after it": message(msgpack.packb({"kind": "x"}) + b"\x00"),
    "an empty header": message(b""),
    "no kind": message({"fields": {}}),
    "an empty kind": message({"kind": ""}),
    "a kind that is a number": message({"kind": 7}),
    "an unknown key": message({"kind": "x", "sender": "h1"}),
    "keys that are numbers": message(msgpack.packb({"kind": "x", 3: 4})),
    "fields that are a list": message({"kind": "x", "fields": []}),
    "fields with bytes as keys": message(msgpack.packb({"kind": "x", "fields": {b"a": 1}})),
    "an extension type": message(msgpack.packb({"kind": "x", "fields": {"a": msgpack.ExtType(4, b"abc")}})),
    "a timestamp": message(msgpack.packb({"kind": "x", "fields": {"a": msgpack.Timestamp(1, 0)}})),
    "an id of zero": message({"kind": "x", "id": 0}),
    "an id that is true": message({"kind": "x", "id": True}),
    "an id that is a float": message({"kind": "x", "id": 1.0}),
    "an id beyond 63 bits": message({"kind": "x", "id": 2**63}),
    "both id and reply_to": message({"kind": "x", "id": 1, "reply_to": 1}),
    "tensors that are a map": message({"kind": "x", "tensors": {}}),
    "too many tensors": message({"kind": "x", "tensors": [[str(i), "u8", [0]] for i in range(4097)]}),
    "an unknown dtype": message({"kind": "x", "tensors": [["t", "f64", [1]]]}, b"12345678"),
    "a dtype that is a list": message({"kind": "x", "tensors": [["t", ["f32"], [1]]]}, b"1234"),
    "a shape that is a number": message({"kind": "x", "tensors": [["t", "u8", 4]]}, b"1234"),
    "a negative dimension": message({"kind": "x", "tensors": [["t", "u8", [-2, -2]]]}, b"1234"),
    "a dimension that is true": message({"kind": "x", "tensors": [["t", "u8", [True]]]}, b"1"),
    "nine dimensions": message({"kind": "x", "tensors": [["t", "u8", [1] * 9]]}, b"1"),
    "a name that is a number": message({"kind": "x", "tensors": [[5, "u8", [1]]]}, b"1"),
    "two tensors of one name": message({"kind": "x", "tensors": [["t", "u8", [1]]] * 2}, b"12"),
    "more body than tensors": message({"kind": "x", "tensors": [["t", "u8", [1]]]}, b"12"),
    "less body than tensors": message({"kind": "x", "tensors": [["t", "f32", [1000, 250]]]}, b"12"),
    "an empty tensor of absurd shape": message({"kind": "x", "tensors": [["t", "u8", [0, 2**62, 2**62]]]}),
    "an end in the middle of the prefix": message({"kind": "x"})[:9],
    "an end in the middle of the header": message({"kind": "x"})[:-2],
    "an end in the middle of the body": message({"kind": "x", "tensors": [["t", "u8", [9]]]}, b"123456789")[
        :-1
    ],
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_frame_that_breaks_a_rule_is_refused(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        receive(data)
    assert not isinstance(caught.value, EndOfStream)


def test_the_end_between_two_frames_is_no_fault() -> None:
    with pytest.raises(EndOfStream, match="the peer closed the connection"):
        receive(b"")


def test_nothing_is_allocated_for_sizes_that_are_not_allowed() -> None:
    rows = 2**40
    too_big = message({"kind": "x", "tensors": [["t", "u8", [rows]]]})
    too_big = too_big[:8] + struct.pack(">Q", rows) + too_big[16:]
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="this connection takes 1048576"):
            receive(too_big)
        # Lists that claim many elements and hold none, nested: each must fail before room is made for them.
        bomb = b"\x82\xa4kind\xa1x\xa6fields\x81\xa1a" + b"\xdd\xff\xff\xff\xff" * 1000
        with pytest.raises(WireError):
            decode_header(bomb, body_len=0, max_body_bytes=LIMIT)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_never_get_past_the_prefix_unseen(data: bytes) -> None:
    try:
        header_len, body_len = decode_prefix(
            data[:16].ljust(16, b"\0"), max_header_bytes=LIMIT, max_body_bytes=LIMIT
        )
    except WireError:
        return
    assert data[:4] == b"UT\x01\x00"
    assert max(header_len, body_len) <= LIMIT


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)
header_like = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.text(max_size=5) | json_like,
        "id": json_like,
        "reply_to": json_like,
        "fields": json_like,
        "tensors": st.lists(
            st.tuples(
                st.text(max_size=3), st.sampled_from([*DTYPES, "f64"]), st.lists(st.integers(-1, 2**65))
            )
        )
        | json_like,
    },
)


@settings(max_examples=400, deadline=None)
@given(
    packed=st.binary(max_size=300) | header_like.map(lambda value: pack_leniently(value)),
    body_len=st.integers(0, LIMIT),
)
def test_whatever_the_header_a_decoded_one_keeps_every_rule(packed: bytes, body_len: int) -> None:
    try:
        header = decode_header(packed, body_len=body_len, max_body_bytes=LIMIT)
    except WireError:
        return
    assert sum(spec.size_bytes for spec in header.tensors) == body_len
    assert all(math.prod(max(side, 1) for side in spec.shape) <= LIMIT for spec in header.tensors)
    assert isinstance(header.kind, str)
    assert isinstance(header.fields, dict)
    assert header.id is None or header.reply_to is None


def pack_leniently(value: Any) -> bytes:
    try:
        packed: bytes = msgpack.packb(value)
    except (OverflowError, ValueError):
        packed = b"\xc1"
    return packed


@settings(max_examples=100, deadline=None)
@given(
    fields=st.dictionaries(st.text(max_size=8), json_like, max_size=4),
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.sampled_from(list(DTYPES.values())).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
        ),
        max_size=4,
    ),
    number=st.none() | st.integers(1, 2**63 - 1),
)
def test_what_is_sent_is_what_is_received(
    fields: dict[str, Any], tensors: dict[str, np.ndarray], number: int | None
) -> None:
    received = receive(b"".join(encode(Frame("x", fields=fields, tensors=tensors, reply_to=number))))
    assert (received.kind, received.fields, received.id, received.reply_to) == ("x", fields, None, number)
    assert list(received.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert received.tensors[name].shape == tensor.shape
        assert received.tensors[name].tobytes() == tensor.tobytes()


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=64), cut=st.integers(0, 200))
def test_a_stream_of_rubbish_ends_in_a_wire_error(data: bytes, cut: int) -> None:
    good = message({"kind": "x", "tensors": [["t", "f32", [4]]]}, b"\0" * 16)
    stream = good[:cut] + data
    try:
        frame = receive(stream)
    except WireError:
        return
    assert stream.startswith(good[:16])
    assert frame.kind == "x"
