"""The floor: gloo all-reduce of one flat tensor, a process per worker. `gloo.py WORKERS PARAMETERS`."""

from __future__ import annotations

import datetime
import os
import sys
import tempfile

import torch
import torch.distributed as distributed

sys.path.insert(0, os.path.dirname(__file__))
import commands

_TIMEOUT = datetime.timedelta(seconds=120)


def main() -> None:
    """Fork the ranks; rank 0 takes the commands and has the others follow."""
    workers, parameters = int(sys.argv[1]), int(sys.argv[2])
    answer = commands.take_answers_apart()
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(1, workers):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                for other in (writer, *(earlier for _, earlier in children)):
                    os.close(other)  # or its owner would never see the end of its pipe
                _follow(rank, workers, parameters, folder, reader)
            os.close(reader)
            children.append((pid, writer))
        tensor = _join(0, workers, parameters, folder)

        def one_round() -> None:
            for _, writer in children:
                os.write(writer, b"r")
            _average(tensor, workers)

        one_round()
        commands.serve(one_round, answer)
        for pid, writer in children:
            os.close(writer)
            os.waitpid(pid, 0)


def _join(rank: int, workers: int, parameters: int, folder: str) -> torch.Tensor:
    store = distributed.FileStore(os.path.join(folder, "store"), workers)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=workers, timeout=_TIMEOUT)
    return torch.full((parameters,), 1e-3)


def _average(tensor: torch.Tensor, workers: int) -> None:
    distributed.all_reduce(tensor)
    tensor /= workers


def _follow(rank: int, workers: int, parameters: int, folder: str, reader: int) -> None:
    tensor = _join(rank, workers, parameters, folder)
    while os.read(reader, 1):
        _average(tensor, workers)
    os._exit(0)


if __name__ == "__main__":
    main()
