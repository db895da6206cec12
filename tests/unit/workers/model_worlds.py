"""What the tests of models, trainer and shards share: a tiny model, a device, a ring in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.split_overhead.correct import LLAMA
from benchmarks.split_overhead.rings import HostRing, MemoryChannel, profile
from workers.errors import ConnectFailed, RequestRefused
from workers.inference.shard import ShardHost
from workers.models.chain import Chain
from workers.models.config import parse_config
from workers.models.embedded import tokenizer_json
from workers.models.loader import write_folder
from workers.models.model_config import ModelConfig, parameter_shapes
from workers.models.reference import generate_tokens
from workers.models.split import build
from workers.models.tokenizer import Tokenizer
from workers.wire.frames import Frame
from workers.wire.link import Reply

THREE = [("a", 0, 2), ("b", 2, 4), ("c", 4, 6)]
OTHER_CUTS = [("a", 0, 1), ("b", 1, 5), ("c", 5, 6)]
SLOW = {"pacing": True, "layer_overhead_s": 0.002}
TINY: dict[str, object] = {key: LLAMA[key] for key in LLAMA if key != "bos_token_id"}
TINY["eos_token_id"] = 256
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


def as_arrays(parameters: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Return parameters as a frame carries them."""
    return {name: value.numpy().copy() for name, value in parameters.items()}


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds; fail after a deadline, naming it."""
    due_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < due_s, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.002)


class WatchedChannel(MemoryChannel):
    """A channel whose frames are kept, and do not arrive while it is blocked."""

    def __init__(self, sender: str, receiver: ShardHost, blocked: Callable[[], bool]) -> None:
        self.sent: list[Frame] = []
        self._blocked = blocked
        super().__init__(sender, receiver)

    def carry(self, frame: Frame) -> Frame:
        copies = {name: np.array(value) for name, value in frame.tensors.items()}
        self.sent.append(Frame(frame.kind, fields=dict(frame.fields), tensors=copies))
        return self.sent[-1]

    def take(self, frame: Frame) -> None:
        if not self._blocked():
            super().take(frame)


MakeRing = Callable[..., "Ring"]


class Ring(HostRing):
    """A ring of the tiny model whose nodes can be unreachable, or deaf to what others send."""

    def __init__(
        self, names: str = "abc", *, model: Chain | None = None, compute: str = "fp32", **profile_changes: Any
    ) -> None:
        self.model = model or tiny_model()
        self.unreachable: set[str] = set()
        self.deaf: set[str] = set()
        document = config_with(
            tie_word_embeddings=self.model.config.tied_embeddings,
            num_hidden_layers=self.model.config.layers,
        )
        super().__init__(
            names,
            document,
            self.model.state_dict(),
            tokenizer_json(),
            device=profile(**profile_changes),
            compute=compute,
        )
        self.config = self.model.config

    def channel(self, sender: str, node: str) -> MemoryChannel:
        if node in self.unreachable:
            raise ConnectFailed(f"{node} is unreachable")
        return WatchedChannel(sender, self.hosts[node], lambda: node in self.deaf)

    def generate(
        self, head: str, request: str, *, prompt: str = "hello", max_tokens: int | None = 20, **more: Any
    ) -> Reply:
        fields = more if max_tokens is None else {"max_tokens": max_tokens, **more}
        return self.ask(head, "generate", deployment="d", request=request, prompt=prompt, **fields)

    def wait_done(self, request: str) -> dict[str, Any]:
        wait_for(lambda: self.done(request), f"the end of {request}")
        done = self.done(request)
        assert done
        return done

    def reference(self, prompt: str = "hello", max_tokens: int = 20) -> tuple[list[int], list[float]]:
        return generate_tokens(self.model, Tokenizer(tokenizer_json()).encode(prompt), max_tokens)


def refused(ring: Ring, node: str, kind: str, **fields: Any) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        ring.ask(node, kind, **fields)
    return caught.value
