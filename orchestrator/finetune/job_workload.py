"""What a round of a job asks of its nodes, worked out from the model, the data and the request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.workload import Workload
from orchestrator.finetune.data import Split
from orchestrator.ports import Model
from workers.device import training_flops
from workers.finetune import updates

_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_BYTES_PER_PARAMETER = 4
_PASSES = 3
"""Runs of a layer in a training step: forward, and a backward pass that counts twice."""
_CLASSES = 64
"""Tokens are counted in so many classes: enough to tell texts apart, few for 10^5 nodes."""


def job_workload(
    request: Any, model: Model, split: Split, *, trained: Mapping[str, tuple[int, ...]]
) -> Workload:
    """Work out the workload of `request` on `model` with the data `split`.

    `trained` has the shapes of what a round exchanges: all parameters, or adapters (LoRA), under which the
    model goes to a node once.
    """
    training = request.training
    samples = training.local_steps * training.batch_size
    tokens = samples * training.sequence_length
    whole, changing = model.parameter_bytes // _BYTES_PER_PARAMETER, sum(map(math.prod, trained.values()))
    adapters = bool(training.lora_rank)
    return Workload(
        model_bytes=_BYTES_PER_PARAMETER * changing,
        update_bytes=updates.wire_bytes(trained, training.update_encoding, ratio=training.topk_ratio),
        data_bytes={node: int(part.nbytes) for node, part in split.partitions.items()},
        base_bytes=model.parameter_bytes if adapters else 0,
        flops=training_flops(
            parameters=whole + (changing if adapters else 0),
            trained=changing if adapters else None,
            tokens=tokens,
        ),
        layer_passes=_PASSES * model.layers * training.local_steps,
        samples=dict.fromkeys(split.partitions, float(samples)),
        makeup=makeup(split.partitions),
        congestion_control=congestion_control(),
        orchestrator_bps=request.orchestrator_bps,
    )


def makeup(partitions: Mapping[str, NDArray[Any]]) -> dict[str, tuple[float, ...]]:
    """Return each node's shares of token classes (token number modulo _CLASSES)."""
    counts = {
        node: np.bincount(part.astype(np.int64) % _CLASSES, minlength=_CLASSES)
        for node, part in partitions.items()
    }
    return {node: tuple((count / max(1, count.sum())).tolist()) for node, count in counts.items()}


def congestion_control() -> str:
    """Return how this machine's TCP reacts to loss: `bbr`, or `cubic` for all that slow down on each loss."""
    try:
        return "bbr" if _CONGESTION_CONTROL.read_text(encoding="ascii").startswith("bbr") else "cubic"
    except OSError:
        return "cubic"
