"""What a testbed is: a value that travels as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

Json = dict[str, Any]

STAGES = ("controller", "network", "orchestrator", "workers")
"""The parts of a testbed, in the order in which they start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A testbed that is up.

    `pids` are the processes by name; `urls` has `northbound` and `api` where those stages run; `links` have
    `configured` and `current` values per direction; `trouble` names what has failed since the start.
    """

    prefix: str
    scenario: str
    scenario_path: str | None
    started_at: str
    stages: tuple[str, ...]
    state_dir: str
    pids: dict[str, int]
    urls: dict[str, str]
    hosts: tuple[Json, ...]
    switches: tuple[Json, ...]
    links: tuple[Json, ...]
    emulator: str
    datapath: str
    congestion_control: str
    trouble: tuple[str, ...]

    def to_json(self) -> Json:
        """Return as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Json) -> Status:
        """Read what `to_json` wrote."""
        values = {field.name: document[field.name] for field in fields(cls)}
        for name in ("stages", "hosts", "switches", "links", "trouble"):
            values[name] = tuple(values[name])
        return cls(**values)
