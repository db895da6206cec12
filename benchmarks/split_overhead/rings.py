"""Rings of shard hosts within one process: the product's hosts, heads and stages, joined in memory.

What goes from host to host is encoded to the bytes of the wire and decoded again, without a socket.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from workers.device import DeviceProfile, Pacer
from workers.errors import ChannelClosed, WireError
from workers.inference.shard import ShardHost
from workers.models.config import parse_config
from workers.models.loader import digest
from workers.models.model_config import parameter_shapes
from workers.models.precision import as_array, dtype_of
from workers.wire import frames as wire
from workers.wire.frames import Form, Frame
from workers.wire.link import Reply

Placement = Sequence[tuple[str, int, int]]
"""Node, first and end layer; the head is the first node's."""
DEPLOYMENT = "d"
_MOST_BYTES = 1 << 30


def profile(**changes: Any) -> DeviceProfile:
    """Return a device's profile, without pacing unless asked."""
    values: dict[str, Any] = {
        "device": "cpu",
        "cpu_count": 1,
        "memory_bytes": 10**8,
        "compute_flops": 1e9,
        "layer_overhead_s": 0.001,
        "power": 30.0,
        "emulated": True,
        "pacing": False,
        "torch": torch.__version__,
        "pid": 1,
    }
    return DeviceProfile(**{**values, **changes})


class MemoryChannel:
    """A channel to another host in this process: frames arrive in order, in a thread of their own.

    Like `link.Channel`: `notify` after `close` raises ChannelClosed, a WireError of the receiver closes it.
    """

    def __init__(self, sender: str, receiver: ShardHost) -> None:
        self.sender = sender
        self.closed = False
        self.reason: str | None = None
        self.sent_bytes: dict[str, int] = {}
        self._receiver = receiver
        self._frames: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        threading.Thread(target=self._deliver, daemon=True).start()

    def notify(
        self,
        kind: str,
        fields: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Any] | None = None,
        timeout_s: float = 1.0,
    ) -> None:
        """Send a frame."""
        if self.closed:
            raise ChannelClosed(self.reason or "closed")
        self._frames.put(self.carry(Frame(kind, fields=fields or {}, tensors=tensors or {})))

    def notify_at_once(
        self, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Any] | None = None
    ) -> bool:
        """Send a frame, as `notify`."""
        self.notify(kind, fields, tensors)
        return True

    def send_form_at_once(self, form: Form) -> bool:
        """Send what a form says now, as `notify`."""
        frame = form.frame()
        return self.notify_at_once(frame.kind, frame.fields, frame.tensors)

    def close(self) -> None:
        """Deliver what was sent, and nothing more."""
        self.closed = True
        self._frames.put(None)

    def mute(self) -> None:
        """Lose what is sent from now on: the hosts are about to end."""
        self.take = lambda _frame: None  # type: ignore[method-assign]

    def carry(self, frame: Frame) -> Frame:
        """Return a frame as it arrives."""
        packed = b"".join(wire.encode(frame))
        self.sent_bytes[frame.kind] = self.sent_bytes.get(frame.kind, 0) + len(packed)
        return _decoded(packed)

    def take(self, frame: Frame) -> None:
        """Give a frame to the receiver."""
        self._receiver.on_peer_frame(self.sender, frame)

    def _deliver(self) -> None:
        while (frame := self._frames.get()) is not None:
            try:
                self.take(frame)
            except WireError as error:
                self.closed, self.reason = True, str(error)
                return


class HostRing:
    """Shard hosts in one process, with the orchestrator's side of them, for one model."""

    def __init__(
        self,
        names: Sequence[str],
        document: Mapping[str, Any],
        parameters: Mapping[str, torch.Tensor],
        tokenizer_json: str,
        *,
        device: DeviceProfile | None = None,
        compute: str = "fp32",
        wire: str = "fp32",
    ) -> None:
        self.document = document
        self.parameters = {name: value.to(dtype_of(compute)) for name, value in parameters.items()}
        self._precision = {"compute": compute, "wire": wire}
        self.digest = digest(self.parameters)
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.channels: list[MemoryChannel] = []
        self.hosts: dict[str, ShardHost] = {}
        self.config = parse_config(document)
        self._tokenizer_json = tokenizer_json
        self._news = threading.Condition()
        device = device or profile()
        for name in names:
            self.hosts[name] = ShardHost(
                name,
                Pacer(device),
                memory_bytes=device.memory_bytes,
                dial=self._dial_from(name),
                notify=self._hear_from(name),
            )

    def close(self) -> None:
        """End all hosts."""
        for channel in self.channels:
            channel.mute()
        for host in self.hosts.values():
            host.close()
        for channel in self.channels:
            channel.close()

    def channel(self, sender: str, node: str) -> MemoryChannel:
        """Make a channel from one host to another."""
        return MemoryChannel(sender, self.hosts[node])

    def ask(self, node: str, kind: str, tensors: Mapping[str, Any] | None = None, **fields: Any) -> Reply:
        """Have a host serve a request of the orchestrator."""
        return self.hosts[node].handle(Frame(kind, fields=fields, tensors=tensors or {}, id=1))

    def prepare_fields(self, node: str, placement: Placement, epoch: int) -> dict[str, Any]:
        """Return the `shard.prepare` fields of a node."""
        order = [name for name, _, _ in placement]
        place = order.index(node)
        head = place == 0
        _, first_layer, end_layer = placement[place]
        following = order[(place + 1) % len(order)]
        return {
            "deployment": DEPLOYMENT,
            "epoch": epoch,
            "model": self.digest,
            "config": self.document,
            "roles": (["head"] if head else []) + (["stage"] if end_layer > first_layer else []),
            "first_layer": first_layer,
            "end_layer": end_layer,
            "tokenizer_json": self._tokenizer_json if head else None,
            "previous": order[place - 1],
            "next": {"node": following, "address": "127.0.0.1", "port": 7399},
            "context_tokens": min(128, self.config.context_tokens),
            "request_timeout_s": 10.0,
            **self._precision,
        }

    def shard_tensors(self, node: str, placement: Placement) -> dict[str, np.ndarray[Any, Any]]:
        """Return the parameters of a node's part as a frame carries them."""
        head = placement[0][0] == node
        _, first_layer, end_layer = next(entry for entry in placement if entry[0] == node)
        names = parameter_shapes(self.config, first_layer=first_layer, end_layer=end_layer, head=head)
        return {name: as_array(self.parameters[name]).copy() for name in names}

    def prepare(self, placement: Placement, epoch: int, /, **changes: Any) -> dict[str, Reply]:
        """Have every node prepare its part."""
        return {
            node: self.ask(
                node,
                "shard.prepare",
                self.shard_tensors(node, placement),
                **{**self.prepare_fields(node, placement, epoch), **changes},
            )
            for node, _, _ in placement
        }

    def commit(self, placement: Placement, epoch: int) -> None:
        """Have every node run what it has prepared."""
        for node, _, _ in reversed(placement):  # the head last: it starts to send
            self.ask(node, "shard.commit", deployment=DEPLOYMENT, epoch=epoch)

    def deploy(self, placement: Placement, epoch: int = 1, **changes: Any) -> None:
        """Prepare and commit a placement."""
        self.prepare(placement, epoch, **changes)
        self.commit(placement, epoch)

    def tokens(self, request: str) -> list[dict[str, Any]]:
        """Return what was told of a request's tokens so far."""
        told = [fields["tokens"] for _, kind, fields in list(self.told) if kind == "tokens"]
        return [token for tokens in told for token in tokens if token["request"] == request]

    def done(self, request: str) -> dict[str, Any] | None:
        """Return how a request ended; None while it runs."""
        told = list(self.told)
        ends = [fields for _, kind, fields in told if kind == "done" and fields["request"] == request]
        assert len(ends) <= 1, f"{request} ended {len(ends)} times"
        return ends[0] if ends else None

    def await_done(self, request: str, *, timeout_s: float) -> dict[str, Any]:
        """Wait until a request has ended; raises TimeoutError."""
        with self._news:
            if not self._news.wait_for(lambda: self.done(request) is not None, timeout_s):
                raise TimeoutError(f"request {request} has not ended within {timeout_s:g} s")
        done = self.done(request)
        assert done is not None
        return done

    def _hear_from(self, name: str) -> Callable[[str, Mapping[str, Any]], None]:
        def hear(kind: str, fields: Mapping[str, Any]) -> None:
            with self._news:
                self.told.append((name, kind, dict(fields)))
                if kind == "done":
                    self._news.notify_all()

        return hear

    def _dial_from(self, sender: str) -> Callable[[str, str, int], MemoryChannel]:
        def dial(node: str, _address: str, _port: int) -> MemoryChannel:
            channel = self.channel(sender, node)
            self.channels.append(channel)
            return channel

        return dial


def _decoded(packed: bytes) -> Frame:
    start = wire.PREFIX.size
    length, body_len = wire.decode_prefix(
        packed[:start], max_header_bytes=wire.MAX_HEADER_BYTES, max_body_bytes=_MOST_BYTES
    )
    header = wire.decode_header(packed[start : start + length], body_len=body_len, max_body_bytes=_MOST_BYTES)
    body, place, tensors = bytearray(packed[start + length :]), 0, {}
    for spec in header.tensors:
        part = np.frombuffer(body, dtype=np.uint8, count=spec.size_bytes, offset=place)
        tensors[spec.name] = part.view(spec.dtype).reshape(spec.shape)
        place += spec.size_bytes
    return Frame(header.kind, fields=header.fields, tensors=tensors)
