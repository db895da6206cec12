"""Keep what transfers between hosts achieved, as those who made them report it.

Goodput is what applications got: payload bytes over the time that they took, whatever protocol carried them.
It is a figure of its own, beside capacity and available bandwidth: a transfer that was limited by its ends
says little of the path.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryu_apps.errors import BadRequestError
from ryu_apps.stats import Measurement, unknown

SMOOTHING = 0.3
MAX_PAIRS = 20_000
"""More pairs push out those that were reported least recently."""
MAX_BYTES = 1e15
MAX_SECONDS = 86_400.0
MIN_SECONDS = 0.001
MAX_AGE_S = 3600.0
MAX_AHEAD_S = 5.0
STALE_AFTER_S = 600.0
UNIT = "bit/s"
SOURCE = "transfers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One transfer: so many payload bytes in so many seconds, done at a Unix time."""

    payload_bytes: float
    seconds: float
    at: float

    @property
    def rate_bps(self) -> float:
        """What it achieved."""
        return self.payload_bytes * 8 / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    value_bps: float
    raw_bps: float
    samples: int
    at: float


class Goodputs:
    """Own the goodput of every pair of hosts that was reported."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], _Kept] = {}

    def add(self, src: str, dst: str, transfer: Transfer) -> None:
        """Take a transfer in; one that ended before the last one known counts no more."""
        known = self._kept.pop((src, dst), None)
        rate_bps = transfer.rate_bps
        if known is None or transfer.at - known.at > STALE_AFTER_S:
            kept = _Kept(value_bps=rate_bps, raw_bps=rate_bps, samples=1, at=transfer.at)
        elif transfer.at < known.at:
            kept = known
        else:
            smoothed = known.value_bps + (rate_bps - known.value_bps) * SMOOTHING
            kept = _Kept(value_bps=smoothed, raw_bps=rate_bps, samples=known.samples + 1, at=transfer.at)
        while len(self._kept) >= MAX_PAIRS:
            del self._kept[next(iter(self._kept))]
        self._kept[src, dst] = kept

    def goodput(self, now: float, src: str, dst: str) -> Measurement:
        """Return the smoothed goodput from one host to another."""
        kept = self._kept.get((src, dst))
        if kept is None:
            return unknown("no transfer was reported", source=SOURCE, unit=UNIT)
        age_s = max(0.0, now - kept.at)
        stale = age_s > STALE_AFTER_S
        return Measurement(
            value=None if stale else kept.value_bps,
            raw=kept.raw_bps,
            samples=0 if stale else kept.samples,
            age_s=age_s,
            source=SOURCE,
            unit=UNIT,
            reason=f"no transfer was reported for {age_s:.0f} s" if stale else None,
        )


def parse_transfer(now: float, body: dict[str, object]) -> Transfer:
    """Read `bytes`, `seconds` and `at` of a report.

    Raises:
        BadRequestError: one of them is missing, no number, or cannot be.
    """
    payload_bytes = _number(body, "bytes", low=1, high=MAX_BYTES)
    seconds = _number(body, "seconds", low=MIN_SECONDS, high=MAX_SECONDS)
    at = _number(body, "at", low=now - MAX_AGE_S, high=now + MAX_AHEAD_S)
    return Transfer(payload_bytes=payload_bytes, seconds=seconds, at=min(at, now))


def _number(body: dict[str, object], name: str, *, low: float, high: float) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequestError(f"{name} is {str(value)[:40]!r}; it must be a number")
    if not low <= value <= high:
        shown = f"{value:g}" if isinstance(value, float) or abs(value) < 1 << 63 else "beyond all bounds"
        raise BadRequestError(f"{name} is {shown}; it must be between {low:.14g} and {high:.14g}")
    return float(value)
