"""Keep the capacities that operators configured, by link id; on request in a file that survives a restart."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from pathlib import Path

from ryu_apps.errors import StartError
from ryu_apps.stats import Measurement

LOG = logging.getLogger(__name__)


class ConfiguredCapacities:
    """Own the configured capacities in bit/s."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._capacities: dict[str, tuple[float, float | None]] = {}
        if self._path is not None and self._path.exists():
            self._capacities = {link: (bps, None) for link, bps in _read(self._path).items()}

    def has(self, link_id: str) -> bool:
        """Tell whether a link's capacity is configured."""
        return link_id in self._capacities

    def get(self, now: float, link_id: str) -> Measurement | None:
        """Return a link's configured capacity."""
        known = self._capacities.get(link_id)
        if known is None:
            return None
        capacity_bps, since = known
        return Measurement(
            value=capacity_bps,
            raw=capacity_bps,
            samples=1,
            age_s=None if since is None else max(0.0, now - since),
            source="configuration",
            unit="bit/s",
        )

    def put(self, now: float, link_id: str, capacity_bps: float | None) -> None:
        """Configure a link's capacity; None forgets it."""
        if capacity_bps is None:
            self._capacities.pop(link_id, None)
        else:
            self._capacities[link_id] = (capacity_bps, now)
        if self._path is not None:
            self._write(self._path)

    def _write(self, path: Path) -> None:
        """Replace the file at once, so that a crash leaves the old one or the new one."""
        values = {link: bps for link, (bps, _) in sorted(self._capacities.items())}
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
            json.dump(values, file, indent=1)
        os.replace(file.name, path)


def _read(path: Path) -> dict[str, float]:
    way_out = "mend it, remove it, or give another one with --capacities"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StartError(f"capacities file {path} cannot be read ({error}); {way_out}") from error
    if not isinstance(document, dict):
        raise StartError(f"capacities file {path} holds no map of link ids to bit/s; {way_out}")
    for link, value in document.items():
        if not is_capacity(value):
            raise StartError(
                f"capacities file {path}: {link} is {value!r}, not a number of bit/s above 0; {way_out}"
            )
    return {link: float(value) for link, value in document.items()}


def is_capacity(value: object) -> bool:
    """Tell whether a value from JSON is a capacity: a finite number above 0, at most 1e15."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 < value <= 1e15
