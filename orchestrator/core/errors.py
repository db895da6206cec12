"""The core's errors: one tree; every message names the thing, the value and the way out."""


class CoreError(Exception):
    """A decision that cannot be made."""


class InvalidValue(CoreError, ValueError):
    """A value that breaks its own rules."""


class InvalidPolicy(CoreError, ValueError):
    """A selection policy that is unknown or whose conditions do not hold."""


class Infeasible(CoreError):
    """No placement meets the constraints.

    `constraint` is the binding one: `no-nodes`, `trusted-head`, `min-nodes`, `memory`, `paths`, `pinned`
    or `search` (a heuristic found none; the exact solver can tell whether there is one).
    """

    def __init__(self, constraint: str, reason: str) -> None:
        super().__init__(reason)
        self.constraint = constraint
        self.reason = reason


class SearchLimit(CoreError):
    """The exact solver gave up after its limit of expansions; the beam has an answer."""
