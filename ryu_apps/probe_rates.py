"""How many more probes a link deserves: where its loss or its delay is not known well enough. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ryu_apps.tally import WINDOW_S, Tally, Z

HALF_WIDTH = 0.006
"""The interval of a link's loss shall be so narrow on either side, if its share of probes allows."""
NONE_LOST = 600
"""So many probes say that a link loses nothing; what it may lose yet widens the interval of its paths."""
RESTLESS_S = 0.005
"""A link whose delay jitters by so much gets twice the probes, by twice as much three times."""
MOST = 20.0
"""Probes per second and link."""


def wanted_rate(base: float, tally: Tally, *, round_trip: bool, jitter_s: float | None) -> float:
    """Return how many probes per second a link should get, at least `base`.

    Where nothing is lost, `NONE_LOST` suffice; some loss needs as many as narrow its interval to
    `HALF_WIDTH`. A round trip tells the loss of two directions: a half of them suffices to see that there is
    none, a quarter to see how much.
    """
    wanted = NONE_LOST / (2 if round_trip else 1) / WINDOW_S
    if tally.lost > 0:
        packets = tally.ratio * (1 - tally.ratio) * (Z / HALF_WIDTH) ** 2
        wanted = packets / (4 if round_trip else 1) / WINDOW_S
    if jitter_s is not None and jitter_s > RESTLESS_S:
        wanted = max(wanted, base * (1 + jitter_s / RESTLESS_S))
    return min(max(base, wanted), max(base, MOST))


def shares(extra: Sequence[float], spare: float) -> list[float]:
    """Return what everybody gets of `spare` probes per second who wants `extra`: all alike, none too much."""
    total = sum(extra)
    share = min(1.0, max(0.0, spare) / total) if total > 0 else 0.0
    return [each * share for each in extra]
