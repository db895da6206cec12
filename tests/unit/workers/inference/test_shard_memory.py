"""What a node takes at most while it gets a shard and answers with it: the shard, and a fifth."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_worlds import config_with, random_parameters
from safetensors.torch import save_file

from workers.models.config import parse_config
from workers.models.embedded import tokenizer_json
from workers.models.loader import read_parameters
from workers.models.precision import as_array
from workers.wire.frame_socket import FrameSocket
from workers.wire.frames import Frame

CHILD = Path(__file__).with_name("shard_memory_child.py")
LARGE: dict[str, dict[str, object]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4,
        "tie_word_embeddings": False, "eos_token_id": None,
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 50257, "n_embd": 512, "n_inner": 2048, "n_layer": 4,
        "eos_token_id": None,
    },
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel cannot start a peak anew"
)


def folder_of(path: Path, document: dict[str, Any]) -> Path:
    """Write a folder stored in bf16, as models are nowadays."""
    path.mkdir()
    parameters = random_parameters(parse_config(document))
    save_file({name: value.bfloat16() for name, value in parameters.items()}, path / "model.safetensors")
    return path


def prepare(folder: Path, document: dict[str, Any], compute: str) -> Frame:
    config = parse_config(document)
    parameters = read_parameters(folder, config, compute=compute)
    fields = {
        "deployment": folder.name, "epoch": 1, "model": f"{folder.name}:{compute}", "config": document,
        "roles": ["head", "stage"], "first_layer": 0, "end_layer": config.layers,
        "tokenizer_json": tokenizer_json(), "context_tokens": 64, "request_timeout_s": 10.0,
        "compute": compute,
    }  # fmt: skip
    tensors = {name: as_array(value) for name, value in parameters.items()}
    return Frame("shard.prepare", fields=fields, tensors=tensors, id=1)


@pytest.mark.parametrize(("family", "compute"), [("llama", "fp32"), ("llama", "bf16"), ("gpt2", "bf16")])
def test_a_node_takes_its_shard_and_a_fifth_at_most(tmp_path: Path, family: str, compute: str) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        child = subprocess.Popen(
            [sys.executable, str(CHILD), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[4],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
        )
        theirs.close()
        frames = FrameSocket(ours)
        for name, changes in (("small", {**LARGE[family], "vocab_size": 300}), ("large", LARGE[family])):
            document = config_with(**changes)
            frames.send(prepare(folder_of(tmp_path / name, document), document, compute))
        told, _ = child.communicate(timeout=120)
    assert child.returncode == 0
    found = json.loads(told)
    assert found["held_bytes"] > 40e6
    assert found["peak_bytes"] <= 1.2 * found["held_bytes"]
    assert found["peak_bytes"] > 0.9 * found["held_bytes"], "the peak was not that of the shard"
