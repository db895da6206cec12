"""Rates from byte counters, and what they leave of a link: pure, time is an argument."""

from __future__ import annotations

from ryu_apps.stats import STALE_AFTER_S, Measurement, unknown


class CounterRate:
    """Turn byte counters into a rate over the replies' own durations.

    Counters that go back are a restart of the device (the sample only starts anew), unless they were near the
    top of their 64 bits: then they wrapped.
    """

    SMOOTHING = 0.5
    UNIT = "bit/s"

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self._value: float | None = None
        self._raw: float | None = None
        self._updated_at: float | None = None
        self._samples = 0

    def add(self, now: float, duration_s: float, byte_count: int, *, usable: bool = True) -> float | None:
        """Take one reply in; return the rate since the one before, None where there is none.

        `usable=False` moves the base on without a sample: the interval held traffic of our own.
        """
        previous, self._last = self._last, (duration_s, byte_count)
        if previous is None or duration_s <= previous[0]:
            return None
        delta = byte_count - previous[1]
        if delta < 0:
            if previous[1] < 1 << 63:
                return None
            delta += 1 << 64
        if not usable:
            return None
        self._raw = delta * 8 / (duration_s - previous[0])
        self._value = (
            self._raw if self._value is None else self._value + (self._raw - self._value) * self.SMOOTHING
        )
        self._updated_at = now
        self._samples += 1
        return self._raw

    def rate(self, now: float) -> Measurement:
        """Return the smoothed rate in bit/s."""
        if self._value is None or self._updated_at is None:
            return unknown("no two counter replies yet", source="counters", unit=self.UNIT)
        age_s = max(0.0, now - self._updated_at)
        stale = age_s > STALE_AFTER_S
        return Measurement(
            value=None if stale else self._value,
            raw=self._raw,
            samples=0 if stale else self._samples,
            age_s=age_s,
            source="counters",
            unit=self.UNIT,
            reason=f"no counter reply for {age_s:.0f} s" if stale else None,
        )


def available(capacity: Measurement, used: Measurement) -> Measurement:
    """Return capacity - used, at least 0; unknown when either is."""
    for name, part in (("capacity", capacity), ("used", used)):
        if part.reason is not None:
            return unknown(f"{name} is unknown: {part.reason}", source="derived", unit="bit/s")
    assert capacity.value is not None
    assert used.value is not None
    raw = None if used.raw is None else max(0.0, capacity.value - used.raw)
    return Measurement(
        value=max(0.0, capacity.value - used.value),
        raw=raw,
        samples=used.samples,
        age_s=used.age_s,
        source="derived",
        unit="bit/s",
    )
