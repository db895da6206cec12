"""Shards that nodes hold and nobody needs: of deployments that ended while the node, or we, were away."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.errors import WorkerError
from orchestrator.ports import NodeRecord, WorkerPool

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 2.0
_TIMEOUT_S = 10.0
_HOLDING = re.compile(r"(?P<deployment>.+)/(?P<epoch>\d+):\d+-\d+(\+head)?")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Stray:
    """What one node holds in vain: a deployment's shards of `epoch` and older."""

    node: str
    deployment: str
    epoch: int


def strays(nodes: Iterable[NodeRecord], served: Mapping[str, int | None]) -> list[Stray]:
    """Find what is held in vain, by the nodes' own last word.

    `served` has the deployments that are kept up and the route epoch that each serves under; None: none yet,
    and then nothing of it is in vain.
    """
    found: dict[tuple[str, str], int] = {}
    for node in nodes:
        for holding in node.shards if node.alive else ():
            match = _HOLDING.fullmatch(holding)
            if match is None:
                continue
            deployment, epoch = match["deployment"], int(match["epoch"])
            serving = served.get(deployment, epoch + 1)
            if serving is not None and epoch < serving:
                key = node.node, deployment
                found[key] = max(epoch, found.get(key, epoch))
    return sorted(Stray(node=node, deployment=name, epoch=epoch) for (node, name), epoch in found.items())


class Sweeper:
    """Has nodes free what they hold in vain, from time to time."""

    def __init__(self, pool: WorkerPool, served: Callable[[], Mapping[str, int | None]]) -> None:
        self._pool = pool
        self._served = served
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep-shards", daemon=True)

    def start(self) -> None:
        """Begin; to be called when all that is to be kept up is known."""
        self._thread.start()

    def stop(self) -> None:
        """End; a sweep that is under way is not waited for."""
        self._stopping.set()

    def sweep(self) -> list[Stray]:
        """Look once; answers what nodes were told to free."""
        nodes = self._pool.nodes()  # before what is served: nothing that is served later can be held already
        found = strays(nodes, self._served())
        for stray in found:
            log.info("%s still holds %s up to epoch %d: freed", stray.node, stray.deployment, stray.epoch)
            fields = {"deployment": stray.deployment, "epoch": stray.epoch}
            try:
                self._pool.request(stray.node, "control", "shard.retire", fields, timeout_s=_TIMEOUT_S)
            except WorkerError as error:
                log.info("%s; it is told again", error)
        return found

    def _run(self) -> None:
        while not self._stopping.wait(SWEEP_INTERVAL_S):
            try:
                self.sweep()
            except Exception:
                log.exception("looking for shards that nobody needs failed")
