"""The orchestrator and workers as real processes on loopback, with a small server for a controller."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import requests
import torch
from reserved_ports import reserved_port

from workers.models.config import parse_config
from workers.models.embedded import CONFIG, tokenizer_json
from workers.models.llama import Llama
from workers.models.loader import write_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "adapters"))
from fake_controller import FakeController, path

ROOT = Path(__file__).parents[2]
DATA_ADDRESS = "127.0.0.1"
SMALL = {**CONFIG, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "head_dim": 8}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def write_small_model(folder: Path) -> Path:
    """Write a model with random parameters, large enough to be told apart from noise by training."""
    torch.manual_seed(5)
    model = Llama(parse_config(SMALL))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.05)
    write_folder(folder, SMALL, dict(model.state_dict()), tokenizer_json())
    return folder


class Loopback:
    """One orchestrator, some workers and a controller; everything ends with `close`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.controller = FakeController()
        self._reserved = ExitStack()
        self.api_port = self._reserved.enter_context(reserved_port())
        self.data_port = self._reserved.enter_context(reserved_port(DATA_ADDRESS))
        self.url = f"http://127.0.0.1:{self.api_port}"
        self.session = requests.Session()
        self.processes: dict[str, subprocess.Popen] = {}
        self.workers: dict[str, int] = {}
        self.addresses: dict[str, str] = {}
        self._configurations: dict[str, dict] = {}

    def alive(self) -> set[str]:
        """Name the nodes that are there."""
        return {item["node"] for item in self.get("/api/v1/nodes")["items"] if item["alive"]}

    def start_orchestrator(self) -> None:
        config = {
            "api_port": self.api_port,
            "northbound_url": self.controller.url,
            "data_address": DATA_ADDRESS,
            "data_port": self.data_port,
            "state_dir": str(self.directory / "state"),
            "cache_dir": str(self.directory / "cache"),
            "seed": 3,
            "emulated": True,
        }
        file = self.directory / "orchestrator.json"
        file.write_text(json.dumps(config))
        self._spawn("orchestrator", "-m", "orchestrator.cli", "serve", "--config", str(file))
        self.wait(lambda: self.try_get("/readyz"), what="the orchestrator is ready")

    def start_worker(self, node: str, *, trusted: bool, flops: float, memory_bytes: int) -> None:
        token = self.post("/api/v1/enrolment-tokens", {"node": node, "trusted": trusted})["token"]
        address = f"127.0.0.{10 + int(node[1:])}"
        self.addresses[node] = address
        worker = {
            "node": node,
            "orchestrator": f"{DATA_ADDRESS}:{self.data_port}",
            "listen": f"{address}:0",
            "state_dir": str(self.directory / node),
            "token": token,
            "compute_flops": flops,
            "layer_overhead_s": 0.0005,
            "memory_bytes": memory_bytes,
            "pacing": True,
            "emulated": True,
        }
        self._configurations[node] = worker
        self._spawn_worker(node)

    def restart_worker(self, node: str) -> None:
        """Start a worker again that was killed; it has its certificate, and nothing else."""
        self._spawn_worker(node)

    def _spawn_worker(self, node: str) -> None:
        log, worker = str(self.directory / f"{node}.log"), self._configurations[node]
        call = {"call": "spawn", "node": node, "netns": None, "log": log, "worker": worker}
        self.workers[node] = self._ask_zygote(call)["pid"]

    def start_zygote(self) -> None:
        """Start the process that workers are forked from: torch is imported once for all."""
        self._spawn("zygote", "-m", "workers.zygote", "--socket", str(self.directory / "zygote.sock"))
        self.wait(lambda: (self.directory / "zygote.sock").exists(), what="the zygote listens")

    def measure(self, slow: dict[str, float] | None = None) -> None:
        """Have the controller report paths between all; `slow` are delays of single nodes."""
        slow = slow or {}
        names = {"orch": DATA_ADDRESS, **self.addresses}
        self.controller.paths = {
            "generated_at": time.time(),
            "paths": [
                path(src, dst, delay_s=0.001 + slow.get(a, 0.0) + slow.get(b, 0.0))
                for a, src in names.items()
                for b, dst in names.items()
                if a != b
            ],
        }
        self.controller.tell("metric_changed", {"link": "x", "metric": "delay_s"})

    def get(self, address: str):
        return self._checked(self.session.get(self.url + address, timeout=20))

    def try_get(self, address: str):
        try:
            return self.get(address)
        except (requests.RequestException, AssertionError):
            return None

    def post(self, address: str, body: dict):
        return self._checked(self.session.post(self.url + address, json=body, timeout=60))

    def delete(self, address: str):
        return self._checked(self.session.delete(self.url + address, timeout=20))

    def wait(self, condition, *, what: str, timeout_s: float = 60.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended\n{self.log(name)}"
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout_s:g} s: {what}\n{self.log('orchestrator')}")

    def wait_state(self, address: str, states: tuple[str, ...], *, timeout_s: float = 60.0):
        return self.wait(
            lambda: (shown := self.get(address))["state"] in states and shown,
            what=f"{address} is {' or '.join(states)}; it is {self.get(address)}",
            timeout_s=timeout_s,
        )

    def kill(self, node: str) -> None:
        os.kill(self.workers.pop(node), signal.SIGKILL)

    def kill_orchestrator(self) -> None:
        process = self.processes.pop("orchestrator")
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL

    def log(self, name: str) -> str:
        return "\n".join((self.directory / f"{name}.log").read_text().splitlines()[-40:])

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(20)

    def close(self) -> None:
        for name in sorted(self.processes, key=lambda name: name == "orchestrator"):
            process = self.processes[name]
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self.controller.close()
        self._reserved.close()

    def _ask_zygote(self, call: dict) -> dict:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(20)
            asking.connect(str(self.directory / "zygote.sock"))
            asking.sendall(json.dumps(call).encode() + b"\n")
            answer = json.loads(asking.makefile().readline())
        assert "error" not in answer, answer
        return answer

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.directory / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log
            )

    @staticmethod
    def _checked(answer: requests.Response):
        assert answer.status_code < 400, f"{answer.request.method} {answer.url}: {answer.text}"
        return answer.json()


@contextmanager
def system_of(
    directory: Path, flops: Mapping[str, float], *, trusted: Collection[str] | None = None
) -> Iterator[Loopback]:
    """Run an orchestrator with a small model and a worker for each of `flops`; all trusted if not said."""
    made = Loopback(directory)
    try:
        made.model = str(write_small_model(directory / "model"))
        made.start_zygote()
        made.start_orchestrator()
        for node, power in flops.items():
            is_trusted = trusted is None or node in trusted
            made.start_worker(node, trusted=is_trusted, flops=power, memory_bytes=400_000)
        made.measure()
        made.wait(lambda: made.alive() == set(flops), what="all workers are enrolled and alive")
        yield made
    finally:
        made.close()
