"""Flower's gRPC server and clients, FedAvg, no training. `flower.py WORKERS SIZES [FOLDER]`.

SIZES: the tensors' numbers of parameters, joined by commas. With FOLDER, TLS with `ca.pem`, `server.pem`
and `server.key` in it: Flower's own encryption shows the server's certificate only.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import flwr
import numpy as np

sys.path.insert(0, os.path.dirname(__file__))
import commands

_MESSAGE_BYTES = 1 << 30
_ROUNDS = 10_000


class Paced(flwr.server.strategy.FedAvg):
    """FedAvg whose rounds begin when told."""

    def __init__(self, start: queue.Queue[bool], done: queue.Queue[bool], **values) -> None:
        super().__init__(**values)
        self._start, self._done = start, done

    def configure_fit(self, server_round, parameters, client_manager):
        """Wait for the word, then begin the round."""
        client_manager.wait_for(self.min_available_clients, timeout=300)
        if server_round > 1:
            self._done.put(True)
        if not self._start.get():
            os._exit(0)
        return super().configure_fit(server_round, parameters, client_manager)


class Client(flwr.client.NumPyClient):
    """Answers the parameters that it got: an update of their size."""

    def get_parameters(self, config):
        """Never asked: the server has initial parameters."""
        raise NotImplementedError

    def fit(self, parameters, config):
        """Answer at once."""
        return parameters, 1, {}


def main() -> None:
    """Fork the clients before gRPC starts anything, then serve rounds."""
    workers, sizes = int(sys.argv[1]), [int(size) for size in sys.argv[2].split(",")]
    folder = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    answer = commands.take_answers_apart()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    for _ in range(workers):
        if os.fork() == 0:
            _be_client(address, folder)
    start: queue.Queue[bool] = queue.Queue()
    done: queue.Queue[bool] = queue.Queue()
    arrays = [np.zeros(size, dtype=np.float32) for size in sizes]
    strategy = Paced(
        start, done, fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=workers,
        min_available_clients=workers, initial_parameters=flwr.common.ndarrays_to_parameters(arrays),
    )  # fmt: skip
    certificates = None
    if folder is not None:
        certificates = tuple((folder / name).read_bytes() for name in ("ca.pem", "server.pem", "server.key"))

    def one_round() -> None:
        start.put(True)
        done.get(timeout=600)

    def take_commands() -> None:
        try:
            one_round()
            commands.serve(one_round, answer)
        finally:
            os._exit(0)

    threading.Thread(target=take_commands, daemon=True).start()
    # Flower's server takes over signals, which only the main thread may.
    flwr.server.start_server(
        server_address=address,
        config=flwr.server.ServerConfig(num_rounds=_ROUNDS),
        strategy=strategy,
        grpc_max_message_length=_MESSAGE_BYTES,
        certificates=certificates,
    )


def _be_client(address: str, folder: Path | None) -> None:
    for _ in range(100):  # the server's port opens a little later
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0:
                break
        threading.Event().wait(0.2)
    flwr.client.start_client(
        server_address=address,
        client=Client().to_client(),
        grpc_max_message_length=_MESSAGE_BYTES,
        root_certificates=(folder / "ca.pem").read_bytes() if folder is not None else None,
        insecure=folder is None,
    )
    os._exit(0)


if __name__ == "__main__":
    main()
