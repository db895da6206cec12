"""llama.cpp, fp32 weights, its layers spread over processes by its RPC backend; one process is all of it.

`python -m benchmarks.split_overhead.peers.llamacpp_rpc FOLDER CORES TOKENS PROMPT`; cores and a prompt are
`0,1,0`. The first core is the client's, which keeps the embedding and the first layers; on every other one a
server (what `rpc-server` calls, on loopback, unencrypted) has an even share of the layers and the last of
them the LM head, as llama.cpp places them by itself. Greedy, by its own sampler; whatever is not named here
is as llama.cpp has it.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama

from benchmarks.split_overhead.peers import answering, gguf_file

_ADDRESS = "127.0.0.1"
_SERVE = "serve"
_CONTEXT_TOKENS = 1024
_SERVER_TIMEOUT_S = 30.0
_LOOK_S = 0.05
_SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
_CPU = 0
"""GGML_BACKEND_DEVICE_TYPE_CPU."""


def main() -> None:
    """Start the servers, load the model, answer a run per line; or be a server."""
    if sys.argv[1] == _SERVE:
        _be_server(*map(int, sys.argv[2:]))
        return
    answer = answering.take_answers_apart()
    folder, cores, tokens, prompt = sys.argv[1:]
    client, *others = (int(core) for core in cores.split(","))
    os.sched_setaffinity(0, {client})
    engine = _Engine(Path(folder), [_start_server(core) for core in others])
    rows = [int(token) for token in prompt.split(",")]
    answering.serve(lambda: engine.generate(rows, int(tokens)), answer)
    os._exit(0)  # llama.cpp's threads are not waited for


class _Engine:
    """A model of which a share of the layers is with each of the servers, and a context of one sequence."""

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        devices = [_device(f"{_ADDRESS}:{port}") for port in ports]
        params = llama.llama_model_default_params()
        self._devices = (ctypes.c_void_p * (len(devices) + 1))(*devices, None)  # ended by NULL, as asked
        params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        counts = _shares(_layers(folder), len(ports) + 1)[1:]
        if counts:
            counts[-1] += 1  # the LM head counts as a layer, and is the last
        self._split = (ctypes.c_float * llama.llama_max_devices())(*counts)
        params.n_gpu_layers, params.tensor_split = sum(counts), self._split
        self._model = _made(
            llama.llama_model_load_from_file(os.fsencode(gguf_file.beside(folder)), params), "the model"
        )
        context = llama.llama_context_default_params()
        context.n_ctx, context.n_threads, context.n_threads_batch = _CONTEXT_TOKENS, 1, 1
        self._context = _made(llama.llama_init_from_model(self._model, context), "a context")
        self._sampler = _made(llama.llama_sampler_init_greedy(), "a sampler")

    def generate(self, prompt: Sequence[int], count: int) -> dict[str, Any]:
        """Answer the prompt anew; tokens/s and bytes on `lo` are those of all but the first token."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        made = [self._next(prompt)]
        began, sent = time.perf_counter(), _lo_bytes()
        while len(made) < count:
            made.append(self._next(made[-1:]))
        decode_s = time.perf_counter() - began
        rate, size = (count - 1) / decode_s, (_lo_bytes() - sent) / (count - 1)
        return {"tokens_per_s": rate, "tokens": made, "bytes_per_token": size, "encrypted": False}

    def _next(self, tokens: Sequence[int]) -> int:
        row = (llama.llama_token * len(tokens))(*tokens)
        if code := llama.llama_decode(self._context, llama.llama_batch_get_one(row, len(tokens))):
            raise RuntimeError(f"llama_decode answered {code}")
        return int(llama.llama_sampler_sample(self._sampler, self._context, -1))


def _layers(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["num_hidden_layers"])


def _shares(layers: int, processes: int) -> list[int]:
    """Cut as our own stages are cut."""
    cuts = [layers * place // processes for place in range(processes + 1)]
    return [end - first for first, end in itertools.pairwise(cuts)]


def _made(pointer: Any, what: str) -> Any:
    if not pointer:
        raise RuntimeError(f"llama.cpp could not make {what}")
    return pointer


def _device(endpoint: str) -> int:
    """Return the device that a server offers."""
    add = _function("ggml-rpc", "ggml_backend_rpc_add_server", ctypes.c_char_p)
    register = _made(add(endpoint.encode()), f"a device of {endpoint}")
    first = _function("ggml", "ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    return int(_made(first(register, 0), f"a device of {endpoint}"))


def _function(library: str, name: str, *arguments: Any) -> Any:
    """Return a function of a library of llama.cpp that answers a pointer."""
    folder = Path(llama.__file__).parent / "lib"
    function = getattr(ctypes.CDLL(str(folder / f"lib{library}.so")), name)
    function.argtypes, function.restype = arguments, ctypes.c_void_p
    return function


def _lo_bytes() -> int:
    """Count what `lo` of this network namespace has carried."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.lstrip().startswith("lo:"))


def _start_server(core: int) -> int:
    """Start a server on a core and wait until it listens; returns its port."""
    with socket.socket() as holder:  # keeps the port from others, not from a server, which reuses addresses
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((_ADDRESS, 0))
        port = int(holder.getsockname()[1])
        command = [sys.executable, "-m", __spec__.name, _SERVE, str(core), str(port), str(os.getpid())]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline_s = time.monotonic() + _SERVER_TIMEOUT_S
        while True:
            try:
                socket.create_connection((_ADDRESS, port), timeout=1).close()
                return port
            except OSError as error:
                if server.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(f"the server on core {core} does not listen on port {port}") from error
                time.sleep(_LOOK_S)


def _be_server(core: int, port: int, client: int) -> None:
    """Do what `rpc-server --host 127.0.0.1 --threads 1` does, as long as the process `client` lives."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != client:
        return
    os.sched_setaffinity(0, {core})
    own = _made(_function("ggml", "ggml_backend_dev_by_type", ctypes.c_int)(_CPU), "a device of this machine")
    devices = (ctypes.c_void_p * 1)(own)
    start = _function(
        "ggml-rpc",
        "ggml_backend_rpc_start_server",
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_void_p,
    )
    start(f"{_ADDRESS}:{port}".encode(), None, 1, 1, devices)


if __name__ == "__main__":
    main()
