"""What a fine-tuning job has to remember to be resumed: a value, and its form as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any

from orchestrator.core.errors import InvalidValue
from orchestrator.core.jsonable import Json, to_json
from orchestrator.finetune.messages import EpochReport

_TUPLES = frozenset({"active", "contributed", "eliminated"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An engine between two epochs; `version` is the newest, and the epoch that comes next.

    `elapsed_s` and `completed_s` count from the job's start; `completed_s` is None while the final loss is
    unknown. `reports` are those whose loss is still unknown. `out` says who takes no part, and why.
    """

    version: int
    elapsed_s: float
    completed_s: float | None = None
    losses: Mapping[int, float] = field(default_factory=dict)
    reports: tuple[EpochReport, ...] = ()
    out: Mapping[str, str] = field(default_factory=dict)
    random: Json = None
    policy: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Return the snapshot as JSON-able maps and lists."""
        document = to_json(self)
        assert isinstance(document, dict)
        return document


def from_json(document: Mapping[str, Any]) -> Snapshot:
    """Read what `Snapshot.to_json` returned.

    Raises:
        InvalidValue: it is something else.
    """
    try:
        return Snapshot(
            version=int(document["version"]),
            elapsed_s=float(document["elapsed_s"]),
            completed_s=None if document["completed_s"] is None else float(document["completed_s"]),
            losses={int(version): float(loss) for version, loss in document["losses"].items()},
            reports=tuple(_report(item) for item in document["reports"]),
            out={str(node): str(reason) for node, reason in document["out"].items()},
            random=document["random"],
            policy=dict(document["policy"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidValue(f"a job's snapshot cannot be read: {type(error).__name__}: {error}") from error


def random_state(rng: Random) -> Json:
    """Return the state of a generator as JSON."""
    version, words, gauss = rng.getstate()
    return [version, list(words), gauss]


def restore_random(rng: Random, state: Json) -> None:
    """Set a generator to what `random_state` returned.

    Raises:
        InvalidValue: it is something else.
    """
    try:
        version, words, gauss = state  # type: ignore[misc]
        rng.setstate((version, tuple(words), gauss))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"the state of a random generator cannot be read: {error}") from error


def _report(document: Mapping[str, Any]) -> EpochReport:
    known = {item.name for item in fields(EpochReport)}
    values = {name: tuple(value) if name in _TUPLES else value for name, value in document.items()}
    return EpochReport(**{name: value for name, value in values.items() if name in known})
