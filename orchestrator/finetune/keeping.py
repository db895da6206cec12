"""Write a job's checkpoints beside its work, never more than one behind it."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from orchestrator.errors import CheckpointError
from orchestrator.ports import Checkpoint, Checkpoints, EventSink, Json

log = logging.getLogger(__name__)


class Keeper:
    """Writes in a thread of its own. `keep` waits for the write before it, so that only one can be lost."""

    def __init__(self, *, job: str, checkpoints: Checkpoints, events: EventSink, newest: int | None) -> None:
        """`newest` is the version that is kept already, None if there is none."""
        self._job = job
        self._checkpoints = checkpoints
        self._events = events
        self._newest = newest
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{job}-keep")
        self._writing: Future[None] | None = None

    def needs(self, version: int) -> bool:
        """Say whether a version is newer than what is kept or being written."""
        return self._newest is None or version > self._newest

    def keep(self, checkpoint: Checkpoint) -> None:
        """Begin to write a checkpoint; a failure is told as an event, and the job goes on."""
        if self._writing is not None:
            self._writing.result()
        self._newest = checkpoint.version
        self._writing = self._executor.submit(self._write, checkpoint)

    def close(self, *, discard: bool) -> None:
        """Wait for the last write; `discard`: the job has ended, nobody will go on with it."""
        self._executor.shutdown(wait=True)
        if discard:
            self._checkpoints.discard(self._job)

    def _write(self, checkpoint: Checkpoint) -> None:
        told: Json = {"version": checkpoint.version, "written": True, "reason": None}
        try:
            told["bytes"] = self._checkpoints.save(checkpoint)
        except CheckpointError as error:
            log.warning("job %s goes on without its newest checkpoint: %s", self._job, error)
            told |= {"written": False, "reason": str(error)}
        self._events.publish(self._job, "checkpoint", told)
