"""Frames and their headers: docs/wire_protocol.md, version 1. Pure: bytes in, values out, and back.

A frame is a fixed prefix, a msgpack header and the raw bytes of its tensors. Everything that a peer claims
is checked here before memory is allocated for it. The module loads without torch: tensors are numpy arrays.
`frame_socket` moves frames over connections.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import msgpack
import numpy as np

from workers import memory
from workers.errors import WireError
from workers.wire.pace import Receipt

MAGIC = b"UT"
VERSION = 1
PREFIX = struct.Struct(">2sBBIQ")
BLOCK_BYTES = 1 << 20
MAX_HEADER_BYTES = 16 << 20
DEFAULT_MAX_BODY_BYTES = 1 << 30
MAX_TENSORS = 4096
MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 256
MAX_LIST_ITEMS = 1 << 17
MAX_NUMBER = 2**63 - 1

DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
    "i64": np.dtype("<i8"),
    "i32": np.dtype("<i4"),
    "i16": np.dtype("<i2"),
    "u8": np.dtype("u1"),
    "i8": np.dtype("i1"),
}
"""Numpy has no bfloat16; it is the uint16 of the same bits."""
CODES = {dtype: code for code, dtype in DTYPES.items()}
_HEADER_KEYS = {"kind", "id", "reply_to", "tensors", "fields"}

Tensor = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: `fields` are msgpack values with string keys, `tensors` arrays by name.

    A request has an `id`, a reply the `reply_to` of its request, a notification neither. `receipt` is how
    fast a received one arrived, where it was large enough to tell.
    """

    kind: str
    _: KW_ONLY
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    id: int | None = None
    reply_to: int | None = None
    receipt: Receipt | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What the header says of one tensor."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes on the wire."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A checked header: the frame without its tensors' values."""

    kind: str
    fields: Mapping[str, Any]
    tensors: tuple[TensorSpec, ...]
    id: int | None
    reply_to: int | None

    @property
    def of_constant_form(self) -> bool:
        """Say whether frames like this one may come again with the same header, word for word."""
        plain = all(isinstance(value, str | int | float) for value in self.fields.values())
        return bool(self.tensors) and plain and self.id is None and self.reply_to is None


BodySink = Callable[[Header], Iterable[memoryview]]
"""Says where a frame's body goes, piece by piece: writable buffers whose lengths add up to the body's.

A piece is filled before the next is asked for, so a generator can look at each as it has come, and wait:
nothing is read meanwhile, which slows the peer down. It is closed if the body does not come to its end.
"""


def dropped(header: Header) -> Iterator[memoryview]:
    """Give a body no room: it is read, so that the stream stays in step, and forgotten."""
    left = sum(spec.size_bytes for spec in header.tensors)
    scratch = memoryview(bytearray(min(left, BLOCK_BYTES)))
    while left > 0:
        piece = scratch[: min(left, BLOCK_BYTES)]
        left -= len(piece)
        yield piece


def encode(frame: Frame, *, checked: bool = True) -> list[memoryview]:
    """Give the buffers whose concatenation is the frame; the tensors' bytes are not copied.

    Without `checked`, names and numbers are not looked at: for frames of constant form, whose receiver will.

    Raises:
        WireError: the frame cannot be put on the wire (a dtype, a value, a size).
    """
    arrays = [(name, _as_sendable(name, tensor)) for name, tensor in frame.tensors.items()]
    header: dict[str, Any] = {"kind": frame.kind, "fields": dict(frame.fields)}
    if frame.id is not None:
        header["id"] = frame.id
    if frame.reply_to is not None:
        header["reply_to"] = frame.reply_to
    if arrays:
        header["tensors"] = [[name, CODES[array.dtype], list(array.shape)] for name, array in arrays]
    try:
        packed = msgpack.packb(header, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"frame {frame.kind!r}: its fields cannot be packed: {error}") from error
    body_len = sum(array.nbytes for _, array in arrays)
    if len(packed) > MAX_HEADER_BYTES:
        raise WireError(f"frame {frame.kind!r}: header of {len(packed)} bytes, at most {MAX_HEADER_BYTES}")
    if checked:
        _checked_header(header, body_len=body_len, max_body_bytes=max(body_len, DEFAULT_MAX_BODY_BYTES))
    prefix = PREFIX.pack(MAGIC, VERSION, 0, len(packed), body_len)
    buffers = [memoryview(prefix + packed)]
    buffers += [array.reshape(-1).view(np.uint8).data for _, array in arrays if array.size]
    return buffers


class Form:
    """A frame that is sent again and again: its header is made once, only its tensors' values change.

    `tensors` are views of `whole`, the frame as it goes on the wire; the first begins at a cache line.
    """

    def __init__(
        self, kind: str, fields: Mapping[str, Any], shapes: Mapping[str, tuple[type, tuple[int, ...]]]
    ) -> None:
        """Lay the frame out; `shapes` gives each tensor's kind of number and shape. Raises WireError."""
        self.kind = kind
        self.fields = fields
        zeros: dict[str, Tensor] = {name: np.zeros(shape, dtype) for name, (dtype, shape) in shapes.items()}
        head, *_ = encode(Frame(kind, fields=fields, tensors=zeros))
        slack = -len(head) % memory.LINE_BYTES
        size_bytes = slack + len(head) + sum(array.nbytes for array in zeros.values())
        held = memory.empty((size_bytes,), np.uint8)
        held[slack : slack + len(head)] = head
        self.whole = held[slack:].data
        self.tensors: dict[str, Tensor] = {}
        start = slack + len(head)
        for name, array in zeros.items():
            part = held[start : start + array.nbytes]
            self.tensors[name] = np.frombuffer(part, array.dtype).reshape(array.shape)
            start += array.nbytes

    def frame(self) -> Frame:
        """Return a frame with the tensors' values of now."""
        copies = {name: tensor.copy() for name, tensor in self.tensors.items()}
        return Frame(self.kind, fields=self.fields, tensors=copies)


def _as_sendable(name: str, tensor: Tensor) -> Tensor:
    array = np.asarray(tensor, order="C")
    if array.dtype in CODES:
        return array
    little = array.dtype.newbyteorder("<")
    if little not in CODES:
        known = ", ".join(DTYPES)
        raise WireError(
            f"tensor {name!r}: dtype {array.dtype} has no place on the wire; convert to one of {known}"
        )
    return array.astype(little, copy=False)


def decode_prefix(
    prefix: bytes | bytearray, *, max_header_bytes: int, max_body_bytes: int
) -> tuple[int, int]:
    """Give (header_len, body_len) of a frame's first 16 bytes, checked against the limits."""
    magic, version, flags, header_len, body_len = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise WireError(f"magic is {magic!r}, not {MAGIC!r}: the peer does not speak this protocol")
    if version != VERSION:
        raise WireError(f"protocol version {version}, this side speaks {VERSION}")
    if flags != 0:
        raise WireError(f"flags are {flags:#x}, version {VERSION} knows none")
    if header_len > max_header_bytes:
        raise WireError(f"header of {header_len} bytes announced, this connection takes {max_header_bytes}")
    if body_len > max_body_bytes:
        raise WireError(f"body of {body_len} bytes announced, this connection takes {max_body_bytes}")
    return header_len, body_len


def decode_header(packed: bytes | bytearray, *, body_len: int, max_body_bytes: int) -> Header:
    """Unpack and check a header; nothing is allocated for the tensors.

    Raises:
        WireError: naming the rule that the header breaks.
    """
    try:
        header = msgpack.unpackb(
            packed,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_LIST_ITEMS,
            max_map_len=MAX_LIST_ITEMS,
            max_ext_len=0,
            ext_hook=_refuse_extension,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"header is not the msgpack that the protocol uses: {error}") from error
    return _checked_header(header, body_len=body_len, max_body_bytes=max_body_bytes)


def _refuse_extension(code: int, _data: bytes) -> None:
    raise ValueError(f"extension type {code}")


def _checked_header(header: object, *, body_len: int, max_body_bytes: int) -> Header:
    if not isinstance(header, dict):
        raise WireError(f"header is a {type(header).__name__}, not a map")
    if not header.keys() <= _HEADER_KEYS:
        unknown = sorted({str(key) for key in header} - _HEADER_KEYS)
        raise WireError(f"header has unknown keys: {', '.join(unknown)}")
    kind = _checked_name(header.get("kind"), "kind")
    fields = header.get("fields", {})
    if not isinstance(fields, dict) or not set(map(type, fields)) <= {str}:
        raise WireError(f"frame {kind!r}: fields must be a map with string keys")
    number, reply_to = _checked_number(header, "id"), _checked_number(header, "reply_to")
    if number is not None and reply_to is not None:
        raise WireError(f"frame {kind!r}: has both id and reply_to")
    specs = _checked_specs(header.get("tensors", []), max_body_bytes=max_body_bytes)
    if (announced := sum(spec.size_bytes for spec in specs)) != body_len:
        raise WireError(f"frame {kind!r}: its tensors take {announced} bytes, but the body has {body_len}")
    return Header(kind=kind, fields=fields, tensors=specs, id=number, reply_to=reply_to)


def _checked_name(name: object, what: str) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise WireError(f"{what} must be a string of 1 to {MAX_NAME_CHARACTERS} characters")
    return name


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _checked_number(header: dict[str, Any], key: str) -> int | None:
    number = header.get(key)
    if number is None:
        return None
    if not _is_whole(number) or not 0 < number <= MAX_NUMBER:
        raise WireError(f"{key} must be a whole number above 0")
    return int(number)


def _checked_specs(items: object, *, max_body_bytes: int) -> tuple[TensorSpec, ...]:
    if not isinstance(items, list) or len(items) > MAX_TENSORS:
        raise WireError(f"tensors must be a list of at most {MAX_TENSORS}")
    specs = tuple([_checked_spec(item, max_body_bytes=max_body_bytes) for item in items])
    if len(specs) > 1 and len({spec.name for spec in specs}) != len(specs):
        raise WireError("two tensors have the same name")
    return specs


def _checked_spec(item: object, *, max_body_bytes: int) -> TensorSpec:
    if not isinstance(item, list) or len(item) != 3:
        raise WireError("a tensor must be announced as [name, dtype, shape]")
    name = _checked_name(item[0], "a tensor's name")
    if not isinstance(item[1], str) or item[1] not in DTYPES:
        raise WireError(f"tensor {name!r}: unknown dtype; known are {', '.join(DTYPES)}")
    shape = item[2]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise WireError(f"tensor {name!r}: its shape must be a list of at most {MAX_DIMENSIONS}")
    for dimension in shape:
        if type(dimension) is not int or dimension < 0:
            raise WireError(f"tensor {name!r}: its shape must hold whole numbers, none negative")
    return _spec(name, item[1], tuple(shape), max_body_bytes)


@functools.lru_cache(maxsize=1024)
def _spec(name: str, code: str, shape: tuple[int, ...], max_body_bytes: int) -> TensorSpec:
    """Give what is said of a tensor; the same few come again and again, a row in every frame of a ring."""
    dtype = DTYPES[code]
    # An empty tensor must not smuggle in dimensions that no array can have.
    if math.prod(max(dimension, 1) for dimension in shape) * dtype.itemsize > max(max_body_bytes, 8):
        raise WireError(f"tensor {name!r}: larger than the {max_body_bytes} bytes of this connection")
    return TensorSpec(name=name, dtype=dtype, shape=shape)
