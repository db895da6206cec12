"""The device a worker runs on, or emulates: its profile, what work takes on it, and the pace of it.

On one machine the speed of a node is emulated: the work is really done, then the worker waits until the
time that a device of its `compute_flops` would have taken. Where the real work took longer than that, the
emulation was late, and says by how much. On real nodes pacing is off and nothing is waited for.

The functions for modelled time are pure; placement and simulation use the same ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

from workers.errors import ConfigError

FORWARD_FLOPS_PER_PARAMETER = 2
"""One multiplication and one addition for each parameter and row."""
BACKWARD_FACTOR = 2
"""The backward pass computes the gradients of inputs and of parameters: twice the forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What a node tells of its device when it attaches (docs/wire_protocol.md).

    `compute_flops` is in flop/s, `layer_overhead_s` the fixed cost of running one layer once on *this*
    device (already scaled by its power). `power` is None on a real node.
    """

    device: str
    cpu_count: int
    memory_bytes: int
    compute_flops: float
    layer_overhead_s: float
    power: float | None
    emulated: bool
    pacing: bool
    torch: str
    pid: int

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}; it must be 'cpu' or 'cuda'")
        for name in ("cpu_count", "memory_bytes", "compute_flops"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be above 0")
        if self.layer_overhead_s < 0:
            raise ConfigError(f"layer_overhead_s is {self.layer_overhead_s!r}; it must not be negative")

    def to_fields(self) -> dict[str, object]:
        """Give the profile as the fields of an `attach` message."""
        return asdict(self)


def forward_s(profile: DeviceProfile, *, parameters: int, layers: int, rows: int) -> float:
    """Model the seconds one forward pass of `rows` rows takes on the device.

    `parameters` are those of the layers that run, `layers` their number: 2 * parameters * rows flops and a
    fixed cost per layer. Used for stages (prefill and decode) and the head's matrices (`layers` 0).
    """
    flops = FORWARD_FLOPS_PER_PARAMETER * parameters * rows
    return flops / profile.compute_flops + layers * profile.layer_overhead_s


def training_flops(*, parameters: int, tokens: int, trained: int | None = None) -> float:
    """Count the flops of training on `tokens` tokens, of which only `trained` parameters change (None: all).

    Each of the `parameters` that run costs 2 flops a token forward and 2 for the gradients of its inputs;
    only one that is trained costs another 2, for its own gradient. So 6 where all are trained, and about 4
    for adapters (LoRA, Hu et al. 2021), which are counted among `parameters`, too.
    """
    changing = parameters if trained is None else trained
    return float(FORWARD_FLOPS_PER_PARAMETER * tokens * (BACKWARD_FACTOR * parameters + changing))


def training_s(
    profile: DeviceProfile,
    *,
    parameters: int,
    layers: int,
    tokens: int,
    steps: int,
    trained: int | None = None,
) -> float:
    """Model the seconds `steps` training steps over `tokens` tokens in all take on the device.

    `training_flops`, and per step the fixed cost of every layer, forward and backward.
    """
    passes = 1 + BACKWARD_FACTOR
    flops = training_flops(parameters=parameters, tokens=tokens, trained=trained)
    return flops / profile.compute_flops + steps * passes * layers * profile.layer_overhead_s


class Timing(NamedTuple):
    """How long a piece of work took: `real_s` computing, `elapsed_s` with the wait.

    `modelled_s` is what the emulated device would have taken; `late_s` how much longer the real work took
    than that: 0 where the emulation kept up, and without pacing.
    """

    real_s: float
    modelled_s: float
    elapsed_s: float
    late_s: float
    interrupted: bool


class Span:
    """One piece of work on the device, from `Pacer.begin` to `finish`."""

    __slots__ = "_pacer", "ended", "started_s"

    def __init__(self, pacer: Pacer, started_s: float) -> None:
        self._pacer = pacer
        self.started_s = started_s
        self.ended = False

    def finish(self, modelled_s: float, *, interrupt: threading.Event | None = None) -> Timing:
        """Wait until `modelled_s` after the start (if the device is paced) and tell how long it took.

        The wait ends early when `interrupt` is set, or the pacer closed where no `interrupt` is given.
        """
        return self._pacer._finish(self, modelled_s, interrupt)

    def abandon(self) -> None:
        """End the piece of work without waiting, as when it failed; nothing if it has ended."""
        if not self.ended:
            self._pacer._end(self, self._pacer._clock())


class Pacer:
    """Keeps work on this device at the speed of its profile and knows how busy the device is.

    Thread-safe: a trainer and several stages may share it. `close` ends all waits.
    """

    def __init__(self, profile: DeviceProfile, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.profile = profile
        self._clock = clock
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._open_spans: set[Span] = set()
        self._ended_s = 0.0
        self._seen_busy_s = 0.0
        self._seen_at_s = clock()

    def begin(self) -> Span:
        """Start a piece of work now."""
        span = Span(self, self._clock())
        with self._lock:
            self._open_spans.add(span)
        return span

    def utilisation(self) -> float:
        """Tell the busy share (0 to 1) of the time since the last call; an emulated device waits busily."""
        with self._lock:
            now_s = self._clock()
            busy_s = self._ended_s + sum(now_s - span.started_s for span in self._open_spans)
            share = (busy_s - self._seen_busy_s) / max(now_s - self._seen_at_s, 1e-9)
            self._seen_busy_s, self._seen_at_s = busy_s, now_s
        return min(max(share, 0.0), 1.0)

    def close(self) -> None:
        """End every wait, now and from now on."""
        self._closed.set()

    def _finish(self, span: Span, modelled_s: float, interrupt: threading.Event | None) -> Timing:
        now_s = self._clock()
        real_s = elapsed_s = now_s - span.started_s
        interrupted, late_s = False, 0.0
        try:
            if self.profile.pacing:
                interrupted = self._wait_until(span.started_s + modelled_s, interrupt or self._closed)
                now_s = self._clock()
                elapsed_s, late_s = now_s - span.started_s, max(0.0, real_s - modelled_s)
        finally:
            self._end(span, now_s)
        return Timing(
            real_s=real_s, modelled_s=modelled_s, elapsed_s=elapsed_s, late_s=late_s, interrupted=interrupted
        )

    def _wait_until(self, due_s: float, interrupt: threading.Event) -> bool:
        while (remaining_s := due_s - self._clock()) > 0:
            if interrupt.wait(remaining_s):
                return True
        return False

    def _end(self, span: Span, now_s: float) -> None:
        with self._lock:
            if not span.ended:
                span.ended = True
                self._open_spans.discard(span)
                self._ended_s += now_s - span.started_s
