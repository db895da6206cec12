"""The peers as arms: what each needs, how it is started, and what to say where one cannot be had."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks import environments, loopback
from benchmarks.round_overhead import arms
from benchmarks.split_overhead import model

_PEERS = Path(__file__).parent / "peers"
_WARM_UP = 2


class Peers:
    """Starts peers that decode one model, written to `folder`; `notes` gets why one is left out."""

    def __init__(
        self, folder: Path, cores: Sequence[int], tokens: int, options: argparse.Namespace, notes: list[str]
    ) -> None:
        self._folder = folder
        self._cores = cores
        self._tokens = tokens
        self._options = options
        self._notes = notes

    def write(self, document: dict[str, Any], parameters: dict[str, torch.Tensor]) -> None:
        """Write the model for them."""
        model.write(self._folder / "model", document, parameters)

    def whole(self, stack: ExitStack) -> list[arms.Arm]:
        """Start those that hold the whole model on one core; they end with `stack`."""
        cores = self._cores[:1]
        found = [
            self._started(stack, "huggingface", lambda: self._command("huggingface", sys.executable, cores)),
            self._started(
                stack, "llamacpp", lambda: self._command("llamacpp", self._python("xllamacpp"), cores)
            ),
        ]
        return [arm for arm in found if arm is not None]

    def rpc(self, stack: ExitStack, counts: Sequence[int]) -> dict[int, arms.Arm]:
        """Start llama.cpp over each number of processes, on the cores that our stages have; all or none.

        They talk unencrypted, which is all that its RPC backend has, where there is no network but `lo`.
        """
        found = {}
        for count in counts:
            cores = [self._cores[place % len(self._cores)] for place in range(count)]
            arm = self._started(stack, f"llamacpp rpc {count}", lambda cores=cores: self._rpc_command(cores))
            if arm is None:
                return {}
            found[count] = arm
        return found

    def _started(self, stack: ExitStack, name: str, command: Callable[[], list[str]]) -> arms.Arm | None:
        try:
            plan = arms.Plan(name=name, workers=1, command=tuple(command()), warm_up=_WARM_UP)
            arm = arms.Arm(plan, log=self._folder / f"{name}.log")
        except RuntimeError as error:
            self._notes.append(f"{name} not run: {error}")
            return None
        stack.callback(arm.stop)
        return arm

    def _rpc_command(self, cores: Sequence[int]) -> list[str]:
        python = self._python("llamacpp_rpc")
        return loopback.alone(self._command("llamacpp_rpc", python, cores))

    def _command(self, peer: str, python: str | Path, cores: Sequence[int]) -> list[str]:
        prompt = ",".join(map(str, model.PROMPT))
        where = ",".join(map(str, cores))
        values = (str(self._folder / "model"), where, str(self._tokens), prompt)
        return [str(python), "-m", f"benchmarks.split_overhead.peers.{peer}", *values]

    def _python(self, environment: str) -> Path:
        cache, make = self._options.cache, not self._options.quick
        python = environments.python_of(environment, cache, make=make, pins=_PEERS)
        if python is None:
            raise RuntimeError(f"{environment} is not installed; a run without --quick does that")
        return python
