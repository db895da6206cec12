"""What can go wrong with an emulated network; every text names the thing, the value and the way out."""

from __future__ import annotations


class TopologyError(Exception):
    """The root of this package's errors."""


class SpecError(TopologyError):
    """A network or a link that cannot be described."""


class CommandError(TopologyError):
    """A system command failed."""


class EmulationError(TopologyError):
    """The link emulator refused a request or does not answer."""


class TestbedError(TopologyError):
    """The testbed cannot be started, reached or stopped."""

    __test__ = False
