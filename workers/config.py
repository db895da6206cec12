"""What a worker is told at start: by command line on a real node, by the zygote on an emulated one."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from workers.errors import ConfigError

DEFAULT_GIVE_UP_AFTER_S = 60.0
_ABOVE_ZERO = (
    "power",
    "compute_flops",
    "memory_bytes",
    "training_memory_bytes",
    "threads",
    "give_up_after_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """A worker's configuration; None for `compute_flops` and `memory_bytes`: measured on this device.

    `orchestrator` and `listen` are `(address, port)`; to listen on port 0 is to listen on any that is free,
    which the orchestrator is told. `give_up_after_s` is how long the orchestrator may
    be away, at start or later, before the worker ends. `local_data` is a folder of the node's own texts.
    `memory_bytes` is for shards, `training_memory_bytes` for fine-tuning; None: what is free.
    """

    node: str
    orchestrator: tuple[str, int]
    listen: tuple[str, int]
    state_dir: Path
    token: str | None = None
    power: float | None = None
    compute_flops: float | None = None
    layer_overhead_s: float = 0.0
    memory_bytes: int | None = None
    training_memory_bytes: int | None = None
    pacing: bool = False
    emulated: bool = False
    threads: int | None = None
    give_up_after_s: float = DEFAULT_GIVE_UP_AFTER_S
    local_data: Path | None = None

    def __post_init__(self) -> None:
        if not self.node:
            raise ConfigError("node is empty; give the node's name")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value!r}; it must be a number above 0")
        if not 0 <= self.layer_overhead_s < math.inf:
            raise ConfigError(f"layer_overhead_s is {self.layer_overhead_s!r}; it must not be negative")
        if self.pacing and self.compute_flops is None:
            raise ConfigError("pacing needs compute_flops: the speed of the device to emulate")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> WorkerConfig:
        """Check a configuration that came as JSON; unknown keys and wrong types are refused."""
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"unknown worker keys: {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        if missing := sorted({"node", "orchestrator", "listen", "state_dir"} - set(values)):
            raise ConfigError(f"worker keys are missing: {', '.join(missing)}")
        checked = {key: _checked(key, value) for key, value in values.items()}
        return cls(**checked)


def _checked(key: str, value: Any) -> Any:
    if key in ("orchestrator", "listen"):
        return parse_endpoint(value, key, least_port=0 if key == "listen" else 1)
    if key == "state_dir" and isinstance(value, str) and value:
        return Path(value)
    if key == "local_data" and isinstance(value, str) and value:
        return _readable_folder(value)
    wanted: dict[str, tuple[type, ...]] = {
        "node": (str,),
        "token": (str, type(None)),
        "pacing": (bool,),
        "emulated": (bool,),
        "layer_overhead_s": (int, float),
        "give_up_after_s": (int, float),
        "memory_bytes": (int, type(None)),
        "training_memory_bytes": (int, type(None)),
        "threads": (int, type(None)),
        "local_data": (type(None),),
        "power": (int, float, type(None)),
        "compute_flops": (int, float, type(None)),
    }
    types = wanted.get(key, ())
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ConfigError(f"{key} is {value!r}, which is not of the right type")
    return value


def _readable_folder(name: str) -> Path:
    folder = Path(name)
    if not folder.is_dir():
        raise ConfigError(f"local_data is {name!r}, which is no folder; give one with text or JSONL files")
    return folder


def parse_endpoint(text: Any, name: str, *, least_port: int = 1) -> tuple[str, int]:
    """Read `ADDRESS:PORT`."""
    address, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if not (colon and address and port.isascii() and port.isdigit() and least_port <= int(port) < 65536):
        raise ConfigError(f"{name} is {text!r}; it must be ADDRESS:PORT, as in 198.18.0.1:7000")
    return address.strip("[]"), int(port)


def from_arguments(arguments: Sequence[str] | None = None) -> WorkerConfig:
    """Read the command line of `utopia-worker`."""
    parser = argparse.ArgumentParser(
        prog="utopia-worker", description="Run a worker: it trains and hosts shards for an orchestrator."
    )
    parser.add_argument("--orchestrator", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--node", required=True, metavar="NAME")
    parser.add_argument(
        "--listen",
        required=True,
        metavar="ADDRESS:PORT",
        help="where other nodes reach this one; port 0: any that is free",
    )
    parser.add_argument("--state-dir", required=True, metavar="DIR", help="keeps key and certificate")
    parser.add_argument(
        "--local-data",
        metavar="DIR",
        help="text and JSONL files of this node's own: trained on in jobs that ask for it, never sent",
    )
    parser.add_argument("--token", help="the operator's one-time token; not needed once enrolled")
    parser.add_argument(
        "--memory-bytes", type=int, help="what shards may take; default: half of what is free"
    )
    parser.add_argument(
        "--training-memory-bytes", type=int, help="what fine-tuning may take; default: what is free"
    )
    parser.add_argument("--compute-flops", type=float, help="speed in flop/s; default: measured")
    parser.add_argument("--threads", type=int, help="threads to compute with; default: torch's choice")
    parser.add_argument("--give-up-after-s", type=float, default=DEFAULT_GIVE_UP_AFTER_S, metavar="SECONDS")
    emulation = parser.add_argument_group("emulated devices")
    emulation.add_argument("--emulated", action="store_true", help="say that the device is emulated")
    emulation.add_argument("--pacing", action="store_true", help="be as slow as a device of --compute-flops")
    emulation.add_argument("--power", type=float)
    emulation.add_argument("--layer-overhead-s", type=float, default=0.0, metavar="SECONDS")
    return WorkerConfig.from_mapping(vars(parser.parse_args(arguments)))


def configure_logging(node: str) -> None:
    """Log to stderr, each line with the node's name; to be called in `main` functions only."""
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s {node} %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
