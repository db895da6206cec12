"""The job at reduced size, emulated with real training: every policy on one testbed, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.stragglers import emulation
from benchmarks.stragglers.arms import Arm
from benchmarks.stragglers.emulation import Progress
from scenarios.schema import Scenario, parse
from workers.models import embedded
from workers.models.config import parse_config
from workers.models.llama import Llama
from workers.models.loader import write_folder

EPOCHS = 5
CONFIG = {**embedded.CONFIG, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
"""Small enough for two cores to train forty of it; the built-in model's family and vocabulary."""
_FLOPS_PER_POWER = 5e6
_MOST_NODES = 16
"""So many devices of that speed keep two cores busy; with more, each is slower, so that all can keep up."""


def scenario(setup: int, nodes: int, *, seed: int, prefix: str, port: int) -> Scenario:
    """Return the reduced scenario: Table I's links, and devices slow enough for two cores."""
    return parse(
        {
            "name": f"emulate-{setup}-{nodes}-{seed}",
            "seed": seed,
            "topology": {"hosts": nodes, "domains": 3},
            "links": {"setup": setup},
            "devices": {
                "flops_per_power": _FLOPS_PER_POWER * min(1.0, _MOST_NODES / nodes),
                "power_min": 8,
                "trusted": ["h1"],
            },
            "network": {
                "prefix": prefix,
                "openflow_port": port,
                "northbound_port": port + 1500,
                "api_port": port + 1501,
            },
            "finetune": {"epochs": EPOCHS, "policies": ["all"]},
        },
        source="emulation",
    )


def run(asked: Scenario, arms: Sequence[Arm], progress: Progress) -> list[dict[str, Any]]:
    """Run the job with each arm; one row for each."""
    with TemporaryDirectory() as folder:
        model = tiny_model(Path(folder), seed=asked.seed)
        with emulation.testbed_up(asked, progress) as bed:
            rows = [emulation.run_job(bed, arm, model=str(model), progress=progress) for arm in arms]
            return [row | {"profile": bed.profile} for row in rows]


def tiny_model(folder: Path, *, seed: int) -> Path:
    """Write an untrained model of CONFIG."""
    torch.manual_seed(seed)
    model = Llama(parse_config(CONFIG))
    write_folder(folder / "tiny", CONFIG, model.state_dict(), embedded.tokenizer_json())
    return folder / "tiny"
