"""A node in a process of its own that tells how much memory a shard took at most.

Called with a socket's number. Takes a small model first, so that everything is loaded and compiled, then the
one to be measured; writes JSON.
"""

from __future__ import annotations

import json
import queue
import socket
import sys
from pathlib import Path

import torch

from benchmarks.split_overhead.rings import profile
from workers.device import Pacer
from workers.inference.shard import ShardHost
from workers.wire.frame_socket import FrameSocket
from workers.wire.frames import Frame

_MEMORY_BYTES = 1 << 30


def main() -> None:
    """Hold what is sent, generate with it, and tell the peak."""
    torch.set_num_threads(1)
    frames = FrameSocket(socket.socket(fileno=int(sys.argv[1])))
    done: queue.SimpleQueue[object] = queue.SimpleQueue()
    host = ShardHost(
        "a",
        Pacer(profile(memory_bytes=_MEMORY_BYTES)),
        memory_bytes=_MEMORY_BYTES,
        dial=_dial,
        notify=lambda kind, fields: done.put(fields) if kind == "done" else None,
    )
    _run(host, frames, done)
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: proc(5)
    held_bytes = _run(host, frames, done)
    sys.stdout.write(json.dumps({"held_bytes": held_bytes, "peak_bytes": _status_bytes("VmHWM") - before}))
    host.close()


def _run(host: ShardHost, frames: FrameSocket, done: queue.SimpleQueue[object]) -> int:
    """Take a model, have it answer, and give it up; return what the node says that it takes."""
    frame = frames.receive()
    name = frame.fields["deployment"]
    reply = host.handle(frame)
    del frame
    assert reply is not None
    host.handle(Frame("shard.commit", fields={"deployment": name, "epoch": 1}, id=2))
    asked = {"deployment": name, "request": "r", "tokens": [1, 2, 3] * 10, "max_tokens": 8}
    host.handle(Frame("generate", fields=asked, id=3))
    assert done.get(timeout=60)["finish_reason"] == "length"  # type: ignore[index]
    return int(reply.fields["memory_bytes"])


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def _dial(_node: str, _address: str, _port: int) -> None:
    raise AssertionError("one node has no neighbour")


if __name__ == "__main__":
    main()
