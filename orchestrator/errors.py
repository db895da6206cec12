"""The error tree of the orchestrator's edges.

Every text names the thing, the value and the way out: it is what users read in a problem document.
The pure core has errors of its own (`orchestrator.core.errors`).
"""

from __future__ import annotations


class OrchestratorError(Exception):
    """Anything that the orchestrator reports to whoever asked."""


class ConfigError(OrchestratorError):
    """The configuration cannot be used."""


class InvalidRequest(OrchestratorError):
    """What was asked for is malformed or makes no sense; `field` names the culprit where there is one."""

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field


class ImpossibleRequest(InvalidRequest):
    """What was asked for is well formed, but contradicts itself: no nodes and no network could do it."""


class NotFound(OrchestratorError):
    """There is no such node, job, deployment or run."""


class Conflict(OrchestratorError):
    """It cannot be done in the present state."""


class Unavailable(OrchestratorError):
    """Something needed for it is not up at the moment; asking again later may help."""


class EnrolmentRefused(OrchestratorError):
    """A worker's token, name or certificate request is not acceptable."""


class StoreError(OrchestratorError):
    """The records cannot be read or written."""


class CheckpointError(OrchestratorError):
    """A job's checkpoint cannot be written or is not whole."""


class WorkerError(OrchestratorError):
    """A request to a worker did not succeed."""


class WorkerLost(WorkerError):
    """The worker's connection is gone or never was."""


class WorkerTimeout(WorkerError):
    """The worker did not answer in time."""


class WorkerRefused(WorkerError):
    """The worker answered with an error; `code` is the wire protocol's."""

    def __init__(self, detail: str, *, code: str) -> None:
        super().__init__(detail)
        self.code = code


class NorthboundError(OrchestratorError):
    """The controller's answer cannot be had or does not follow docs/northbound_api.md."""


class ModelError(OrchestratorError):
    """A model folder or text cannot be used."""
