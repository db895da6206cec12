"""Bound what one switch port may have the controller do: pure, time is an argument.

Each port has a bucket of tokens (as in RFC 2697) for what hosts send up of their own accord, and one for
measuring packets, so that a host that floods is left out early and hurts only the ports it speaks through.
"""

from __future__ import annotations

from collections import Counter

MAX_PORTS = 65536


class Buckets:
    """One token bucket per key, full at first: `rate` tokens per second, at most `burst`."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._filled: dict[tuple[int, int], tuple[float, float]] = {}

    def take(self, now: float, key: tuple[int, int]) -> bool:
        """Take a token of `key`; tell whether there was one."""
        at, tokens = self._filled.get(key, (now, self._burst))
        tokens = min(self._burst, tokens + max(0.0, now - at) * self._rate)
        if key not in self._filled and len(self._filled) >= MAX_PORTS:
            self._filled.clear()
        allowed = tokens >= 1.0
        self._filled[key] = (now, tokens - 1.0 if allowed else tokens)
        return allowed


class PortLimits:
    """Say which packets of a port are taken, and count those that are not."""

    HOST_RATE = 200.0
    HOST_BURST = 400.0

    def __init__(self, *, probe_rate: float) -> None:
        """Allow `probe_rate` measuring packets per second and port: what is sent in all."""
        self._own = Buckets(rate=probe_rate, burst=2 * probe_rate)
        self._others = Buckets(rate=self.HOST_RATE, burst=self.HOST_BURST)
        self.counts: Counter[str] = Counter()

    def allow(self, now: float, place: tuple[int, int], *, measuring: bool) -> bool:
        """Tell whether a packet that came in at `place` is worth a look."""
        if (self._own if measuring else self._others).take(now, place):
            return True
        self.counts["measuring" if measuring else "packets"] += 1
        return False
