"""Raw Ray actors: the model is put into the object store, each actor answers an update, the driver averages.

`ray_actors.py WORKERS PARAMETERS`. To be started only where there is no network but `lo`.
"""

from __future__ import annotations

import os
import sys

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import ray

sys.path.insert(0, os.path.dirname(__file__))
import commands

_STORE_BYTES = 2 << 30


@ray.remote(num_cpus=0)
class Actor:
    """A worker that gets the model and answers an update of its size."""

    def __init__(self, parameters: int) -> None:
        self._update = np.full(parameters, 1e-3, dtype=np.float32)

    def train(self, model: np.ndarray) -> np.ndarray:
        """Answer the update; the model is mapped from the object store."""
        assert model.shape == self._update.shape
        return self._update


def main() -> None:
    """Serve rounds."""
    workers, parameters = int(sys.argv[1]), int(sys.argv[2])
    answer = commands.take_answers_apart()
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        object_store_memory=_STORE_BYTES, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    actors = [Actor.remote(parameters) for _ in range(workers)]
    model = [np.zeros(parameters, dtype=np.float32)]

    def one_round() -> None:
        reference = ray.put(model[0])
        waiting = [actor.train.remote(reference) for actor in actors]
        total = np.zeros(parameters, dtype=np.float32)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            total += ray.get(done[0])
        total /= workers
        total += model[0]
        model[0] = total

    one_round()
    commands.serve(one_round, answer)
    ray.shutdown()


if __name__ == "__main__":
    main()
