"""Measure the held-out loss of a job's versions beside its rounds."""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor

from orchestrator.finetune import messages as m
from orchestrator.finetune.parameters import Parameters
from orchestrator.finetune.preparing import Prepared
from orchestrator.finetune.talking import Put
from orchestrator.ports import ModelStore

log = logging.getLogger(__name__)


class Evaluator:
    """Evaluates one version after another in a thread of its own; what comes of it become events."""

    def __init__(self, *, job: str, models: ModelStore, prepared: Prepared, sequence: int, put: Put) -> None:
        """`sequence`: of how many predictions each held-out row is."""
        self._job = job
        self._models = models
        self._prepared = prepared
        self._sequence = sequence
        self._put = put
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{job}-evaluate")

    def evaluate(self, version: int, parameters: Parameters) -> None:
        """Measure a version when those before it are done."""
        self._executor.submit(self._evaluate, version, parameters)

    def close(self) -> None:
        """Begin no evaluation any more; wait for none."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _evaluate(self, version: int, parameters: Parameters) -> None:
        try:
            loss = self._models.loss(
                self._prepared.model,
                self._prepared.whole(parameters),
                self._prepared.split.held_out,
                sequence=self._sequence,
            )
        except Exception as error:
            log.exception("job %s: evaluation of version %d failed", self._job, version)
            self._put(m.DriverFailed, reason=f"evaluation of version {version} failed: {error}")
            return
        if math.isfinite(loss):
            self._put(m.Evaluated, version=version, loss=loss)
        else:
            self._put(m.DriverFailed, reason=f"the held-out loss of version {version} is {loss}")
