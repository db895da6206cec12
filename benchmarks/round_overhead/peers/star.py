"""The star's floor: the bytes of a round and nothing else. `star.py WORKERS BYTES [CERTIFICATES]`.

A server with a thread per worker sends each BYTES and takes as many back, over blocking sockets, in blocks
that it forgets at once: no frames, no checks, no sum, no records. With a folder of certificates it is the
same over TLS of the standard library. What a server in the middle takes beyond this is its own doing.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import threading

sys.path.insert(0, os.path.dirname(__file__))
import commands

_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 120.0


def main() -> None:
    """Fork the workers, connect them, serve rounds."""
    workers, size_bytes = int(sys.argv[1]), int(sys.argv[2])
    certificates = sys.argv[3] if len(sys.argv) > 3 else None
    answer = commands.take_answers_apart()
    listening = socket.create_server(("127.0.0.1", 0), backlog=workers)
    for _ in range(workers):
        if os.fork() == 0:
            _follow(listening.getsockname()[1], size_bytes, certificates)
    context = _server_context(certificates)
    links = []
    for _ in range(workers):
        link, _address = listening.accept()
        links.append(_ready(link) if context is None else context.wrap_socket(_ready(link), server_side=True))
    model = memoryview(bytearray(os.urandom(1 << 20) * -(-size_bytes // (1 << 20))))[:size_bytes]

    def one_round() -> None:
        threads = [threading.Thread(target=_exchange, args=(link, model)) for link in links]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    one_round()
    commands.serve(one_round, answer)


def _exchange(link: socket.socket, model: memoryview) -> None:
    block = memoryview(bytearray(_BLOCK_BYTES))
    _send(link, model)
    left = len(model)
    while left:
        count = link.recv_into(block, min(left, _BLOCK_BYTES))
        if count == 0:
            raise ConnectionResetError("a worker left")
        left -= count


def _follow(port: int, size_bytes: int, certificates: str | None) -> None:
    link = _ready(socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S))
    if certificates is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.load_verify_locations(os.path.join(certificates, "ca.pem"))
        link = context.wrap_socket(link)
    model = memoryview(bytearray(size_bytes))
    update = memoryview(bytearray(os.urandom(1 << 20) * -(-size_bytes // (1 << 20))))[:size_bytes]
    while True:
        filled = 0
        while filled < size_bytes:
            count = link.recv_into(model[filled:], min(size_bytes - filled, _BLOCK_BYTES))
            if count == 0:
                os._exit(0)
            filled += count
        _send(link, update)


def _send(link: socket.socket, data: memoryview) -> None:
    for start in range(0, len(data), _BLOCK_BYTES):
        link.sendall(data[start : start + _BLOCK_BYTES])


def _ready(link: socket.socket) -> socket.socket:
    link.settimeout(_TIMEOUT_S)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def _server_context(certificates: str | None) -> ssl.SSLContext | None:
    if certificates is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(
        os.path.join(certificates, "server.pem"), os.path.join(certificates, "server.key")
    )
    return context


if __name__ == "__main__":
    main()
