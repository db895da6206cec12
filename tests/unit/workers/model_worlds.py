"""What the tests of models, trainer and shards share: a tiny model, a device, a ring in memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.device import DeviceProfile, Pacer
from workers.errors import ChannelClosed, ConnectFailed, WireError
from workers.link import Reply
from workers.models.chain import Chain
from workers.models.config import parse_config
from workers.models.embedded import tokenizer_json
from workers.models.loader import digest, write_folder
from workers.models.model_config import ModelConfig, parameter_shapes
from workers.models.reference import generate_tokens
from workers.models.split import build
from workers.models.tokenizer import Tokenizer
from workers.shard import ShardHost
from workers.wire import Form, Frame

TINY: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 256,
}
TINY_GPT2: dict[str, object] = {
    "model_type": "gpt2",
    "vocab_size": 258,
    "n_embd": 32,
    "n_layer": 6,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 256,
    "eos_token_id": 256,
}
DEADLINE_S = 20.0

torch.set_num_threads(1)  # as the workers do; at this size more threads only get in each other's way


def config_with(**changes: object) -> dict[str, object]:
    """Return the tiny model's config.json with some values changed; None leaves a key out."""
    base = TINY_GPT2 if changes.get("model_type") == "gpt2" else TINY
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def random_parameters(config: ModelConfig, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return parameters large enough that greedy tokens vary."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 2 else 0.1)
        + name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
        for name, shape in parameter_shapes(config).items()
    }


def tiny_model(**changes: object) -> Chain:
    """Return a whole random model."""
    config = parse_config(config_with(**changes))
    return build(config, random_parameters(config))


def tiny_folder(folder: Path, **changes: object) -> Path:
    """Write a whole random model as a Hugging Face folder."""
    document = config_with(**changes)
    write_folder(folder, document, random_parameters(parse_config(document)), tokenizer_json())
    return folder


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


def as_arrays(parameters: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Return parameters as a frame carries them."""
    return {name: value.numpy().copy() for name, value in parameters.items()}


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds; fail after a deadline, naming it."""
    due_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < due_s, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.002)


class MemoryChannel:
    """A channel to another host in this process: frames arrive in order, in a thread of their own.

    Like `link.Channel`: `notify` after `close` raises ChannelClosed, a WireError of the receiver closes it.
    """

    def __init__(self, sender: str, receiver: ShardHost, blocked: Callable[[], bool]) -> None:
        self.sender = sender
        self.closed = False
        self.reason: str | None = None
        self._receiver = receiver
        self._blocked = blocked
        self.sent: list[Frame] = []
        self._frames: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        threading.Thread(target=self._deliver, daemon=True).start()

    def notify(
        self,
        kind: str,
        fields: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Any] | None = None,
        timeout_s: float = 1.0,
    ) -> None:
        if self.closed:
            raise ChannelClosed(self.reason or "closed")
        copies = {name: np.array(value) for name, value in (tensors or {}).items()}
        self.sent.append(Frame(kind, fields=dict(fields or {}), tensors=copies))
        self._frames.put(self.sent[-1])

    def notify_at_once(
        self, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Any] | None = None
    ) -> bool:
        self.notify(kind, fields, tensors)
        return True

    def send_form_at_once(self, form: Form) -> bool:
        frame = form.frame()
        return self.notify_at_once(frame.kind, frame.fields, frame.tensors)

    def close(self) -> None:
        self.closed = True
        self._frames.put(None)

    def _deliver(self) -> None:
        while (frame := self._frames.get()) is not None:
            if self._blocked():
                continue
            try:
                self._receiver.on_peer_frame(self.sender, frame)
            except WireError as error:
                self.closed, self.reason = True, str(error)
                return


class Ring:
    """Shard hosts in one process, with the orchestrator's side of them."""

    def __init__(self, names: str = "abc", *, model: Chain | None = None, **profile_changes: Any) -> None:
        self.model = model or tiny_model()
        self.parameters = dict(self.model.state_dict())
        self.digest = digest(self.parameters)
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.unreachable: set[str] = set()
        self.deaf: set[str] = set()
        self.channels: list[MemoryChannel] = []
        self.hosts: dict[str, ShardHost] = {}
        for name in names:
            device = profile(**profile_changes)
            self.hosts[name] = ShardHost(
                name,
                Pacer(device),
                memory_bytes=device.memory_bytes,
                dial=self._dial_from(name),
                notify=lambda kind, fields, name=name: self.told.append((name, kind, dict(fields))),  # type: ignore[misc]
            )

    def close(self) -> None:
        for host in self.hosts.values():
            host.close()

    def _dial_from(self, sender: str) -> Callable[[str, str, int], MemoryChannel]:
        def dial(node: str, _address: str, _port: int) -> MemoryChannel:
            if node in self.unreachable:
                raise ConnectFailed(f"{node} is unreachable")
            channel = MemoryChannel(sender, self.hosts[node], lambda: node in self.deaf)
            self.channels.append(channel)
            return channel

        return dial

    def ask(self, node: str, kind: str, tensors: Mapping[str, Any] | None = None, **fields: Any) -> Reply:
        return self.hosts[node].handle(Frame(kind, fields=fields, tensors=tensors or {}, id=1))

    def prepare_fields(self, node: str, placement: list[tuple[str, int, int]], epoch: int) -> dict[str, Any]:
        """Return the `shard.prepare` fields of a node for `placement`: (node, first, end), the head first."""
        order = [name for name, _, _ in placement]
        place = order.index(node)
        head = place == 0
        _, first_layer, end_layer = placement[place]
        following = order[(place + 1) % len(order)]
        return {
            "deployment": "d",
            "epoch": epoch,
            "model": self.digest,
            "config": config_with(
                tie_word_embeddings=self.model.config.tied_embeddings,
                num_hidden_layers=self.model.config.layers,
            ),
            "roles": (["head"] if head else []) + (["stage"] if end_layer > first_layer else []),
            "first_layer": first_layer,
            "end_layer": end_layer,
            "tokenizer_json": tokenizer_json() if head else None,
            "previous": order[place - 1],
            "next": {"node": following, "address": "127.0.0.1", "port": 7399},
            "context_tokens": 128,
            "request_timeout_s": 10.0,
        }

    def shard_tensors(self, node: str, placement: list[tuple[str, int, int]]) -> dict[str, Any]:
        head = placement[0][0] == node
        _, first_layer, end_layer = next(entry for entry in placement if entry[0] == node)
        names = parameter_shapes(self.model.config, first_layer=first_layer, end_layer=end_layer, head=head)
        return as_arrays({name: self.parameters[name] for name in names})

    def prepare(
        self, placement: list[tuple[str, int, int]], epoch: int, /, **changes: Any
    ) -> dict[str, Reply]:
        return {
            node: self.ask(
                node,
                "shard.prepare",
                self.shard_tensors(node, placement),
                **{**self.prepare_fields(node, placement, epoch), **changes},
            )
            for node, _, _ in placement
        }

    def commit(self, placement: list[tuple[str, int, int]], epoch: int) -> None:
        for node, _, _ in reversed(placement):  # the head last: it starts to send
            self.ask(node, "shard.commit", deployment="d", epoch=epoch)

    def deploy(self, placement: list[tuple[str, int, int]], epoch: int = 1, **changes: Any) -> None:
        self.prepare(placement, epoch, **changes)
        self.commit(placement, epoch)

    def generate(
        self, head: str, request: str, *, prompt: str = "hello", max_tokens: int | None = 20, **more: Any
    ) -> Reply:
        fields = more if max_tokens is None else {"max_tokens": max_tokens, **more}
        return self.ask(head, "generate", deployment="d", request=request, prompt=prompt, **fields)

    def tokens(self, request: str) -> list[dict[str, Any]]:
        told = [
            token for _, kind, fields in list(self.told) if kind == "tokens" for token in fields["tokens"]
        ]
        return [token for token in told if token["request"] == request]

    def done(self, request: str) -> dict[str, Any] | None:
        ends = [
            fields for _, kind, fields in list(self.told) if kind == "done" and fields["request"] == request
        ]
        assert len(ends) <= 1
        return ends[0] if ends else None

    def wait_done(self, request: str) -> dict[str, Any]:
        wait_for(lambda: self.done(request), f"the end of {request}")
        done = self.done(request)
        assert done
        return done

    def reference(self, prompt: str = "hello", max_tokens: int = 20) -> tuple[list[int], list[float]]:
        return generate_tokens(self.model, Tokenizer(tokenizer_json()).encode(prompt), max_tokens)
