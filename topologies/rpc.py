"""Ask and answer over Unix sockets: one JSON object per line, each way.

The link emulator, the testbed and the workers' zygote all speak this. A request is `{"call": name, ...}`;
an answer is an object, `{"error": text}` when the request failed.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from topologies.errors import TopologyError

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 1 << 20
MAX_ANSWER_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 16

Json = dict[str, Any]
Reply = Callable[[Json], None]


def call(path: Path, request: Json, *, timeout_s: float = 10.0) -> Json:
    """Send `request` to whoever listens at `path` and return the answer.

    Raises:
        TopologyError: nobody listens, there is no answer in time, or the answer is an error.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = _read_line(connection)
        answer = json.loads(line)
    except (OSError, ValueError) as error:
        raise TopologyError(f"{path}: {request.get('call')}: {error or type(error).__name__}") from error
    if not isinstance(answer, dict):
        raise TopologyError(f"{path}: {request.get('call')}: answered {type(answer).__name__}, not an object")
    if "error" in answer:
        raise TopologyError(str(answer["error"]))
    return answer


def _read_line(connection: socket.socket) -> bytes:
    blocks: list[bytes] = []
    size = 0
    while not (blocks and blocks[-1].endswith(b"\n")):
        block = connection.recv(_BLOCK_BYTES)
        if not block:
            raise OSError("the connection was closed before the answer")
        blocks.append(block)
        size += len(block)
        if size > MAX_ANSWER_BYTES:
            raise OSError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return b"".join(blocks)


class Server:
    """Answer requests from within somebody else's `select` loop; never blocks.

    `handle(request, reply)` calls `reply` once, now or later.
    """

    def __init__(self, path: Path, handle: Callable[[Json, Reply], None]) -> None:
        self.path = path
        self._handle = handle
        self._clients: dict[int, _Client] = {}
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(before)
        self._listener.listen(16)
        self._listener.setblocking(False)

    def readers(self) -> list[int]:
        """Return the descriptors to wait on for reading."""
        return [self._listener.fileno(), *self._clients]

    def writers(self) -> list[int]:
        """Return the descriptors to wait on for writing."""
        return [number for number, client in self._clients.items() if client.unsent]

    def step(self, readable: list[int], writable: list[int]) -> None:
        """Serve the descriptors among these that are this server's."""
        if self._listener.fileno() in readable:
            self._accept()
        for number in [number for number in readable if number in self._clients]:
            self._read(self._clients[number])
        for number in [number for number in writable if number in self._clients]:
            self._write(self._clients[number])

    def close(self) -> None:
        """Stop listening, hang up on everybody and remove the socket file."""
        for client in list(self._clients.values()):
            self._forget(client)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(connection)

    def _read(self, client: _Client) -> None:
        try:
            block = client.connection.recv(_BLOCK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            block = b""
        client.received += block
        if not block or len(client.received) > MAX_REQUEST_BYTES:
            self._forget(client)
            return
        while b"\n" in client.received:
            line, _, rest = bytes(client.received).partition(b"\n")
            client.received = bytearray(rest)
            self._answer(client, line)

    def _answer(self, client: _Client, line: bytes) -> None:
        def reply(answer: Json) -> None:
            client.unsent += json.dumps(answer).encode() + b"\n"
            self._write(client)

        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("a request is a JSON object")
        except (ValueError, RecursionError) as error:
            reply({"error": f"not a request: {error}"})
            return
        try:
            self._handle(request, reply)
        except TopologyError as error:
            reply({"error": str(error)})
        except Exception as error:
            log.exception("request %s failed", request.get("call"))
            reply({"error": f"{type(error).__name__}: {error}"})

    def _write(self, client: _Client) -> None:
        try:
            sent = client.connection.send(client.unsent) if client.unsent else 0
            del client.unsent[:sent]
        except BlockingIOError:
            return
        except OSError:
            self._forget(client)

    def _forget(self, client: _Client) -> None:
        self._clients.pop(client.connection.fileno(), None)
        client.connection.close()


class _Client:
    """One connection: what came in without a line's end yet, what is still to go out."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.unsent = bytearray()
