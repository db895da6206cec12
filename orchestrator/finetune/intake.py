"""Room for updates on their way in: one model's size of memory, however many nodes answer at once.

An update must be held until it is whole, or one that breaks off would leave half of itself in the sum. So
updates come one after another into one buffer: a node whose turn it is not yet is not read from, and TCP
slows it down. Behind an update that is being added up, the next one fills what is free already. If the
node whose turn it is takes longer than `patience_s`, because its link is thin, the others do not wait for
it: their updates go to temporary files, mapped into memory, which the kernel keeps on disk.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.wire.frames import BLOCK_BYTES, MAX_TENSORS, Header, Tensor, TensorSpec, dropped

log = logging.getLogger(__name__)

PATIENCE_S = 1.0
_ALIGNMENT = 8

SpecCheck = Callable[[tuple[TensorSpec, ...]], str | None]
ValueCheck = Callable[[str, Tensor], str | None]


class NotAwaited(Exception):
    """Nobody waits for this update any longer."""


class Intake:
    """The buffer of one job and whose turn it is; thread-safe."""

    def __init__(self, size_bytes: int, *, spool: Path | None = None, patience_s: float = PATIENCE_S) -> None:
        """Make room for updates of up to `size_bytes`; files go to `spool` (None: the system's place)."""
        self._size_bytes = size_bytes
        self._spool = spool
        self._patience_s = patience_s
        self._memory: NDArray[np.uint8] | None = None
        # Two conditions of one lock: a dozen may wait for their turn, and each waking costs them all.
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._freed = threading.Condition(self._lock)
        self._reading: Landing | None = None
        self._reading_since_s = 0.0
        self._held: list[Landing] = []
        self._closed = False
        self._counting = threading.Lock()
        self.spooled = 0
        """Updates that went to files so far."""

    def landing(self, *, check: SpecCheck, check_values: ValueCheck) -> Landing:
        """Expect one update; `check` and `check_values` say what is wrong with it, None if nothing."""
        return Landing(self, check, check_values)

    def close(self) -> None:
        """End: whoever waits for a turn drops what it was sent; the memory is free with the last landing."""
        with self._lock:
            self._closed = True
            self._memory = None
            self._turn.notify_all()
            self._freed.notify_all()

    def room_for(self, landing: Landing, size_bytes: int) -> NDArray[np.uint8] | None:
        """Wait for the turn of `landing`; None if it should use a file.

        Raises:
            OverflowError: larger than an update can be.
            NotAwaited: the intake was closed or the landing given up.
        """
        if size_bytes > self._size_bytes + _ALIGNMENT * MAX_TENSORS:
            raise OverflowError(f"the update has {size_bytes} bytes, the model {self._size_bytes}")
        with self._lock:
            while self._reading is not None:
                self._refuse_ended(landing)
                left_s = self._reading_since_s + self._patience_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._turn.wait(left_s)
            self._refuse_ended(landing)
            self._reading, self._reading_since_s = landing, time.monotonic()
            if self._memory is None:
                # What is beyond the updates' bytes is never touched and takes no memory.
                self._memory = np.empty(self._size_bytes + _ALIGNMENT * MAX_TENSORS, dtype=np.uint8)
            return self._memory[:size_bytes]

    def wait_free(self, landing: Landing, end: int) -> None:
        """Wait until the buffer's first `end` bytes hold nothing of earlier updates; raises as `room_for`."""
        with self._lock:
            while any(held.first_held < end for held in self._held):
                self._refuse_ended(landing)
                self._freed.wait()

    def turn_over(self, landing: Landing, *, hold: bool) -> None:
        """Let the next one in; with `hold` the buffer's content stays until `free`."""
        with self._lock:
            if self._reading is landing:
                self._reading = None
                if hold:
                    self._held.append(landing)
                self._turn.notify_all()

    def free(self, landing: Landing, end: int | None) -> None:
        """Note that the first `end` bytes (None: all) of a held update are not needed any longer."""
        with self._lock:
            if landing in self._held:
                if end is None:
                    self._held.remove(landing)
                else:
                    landing.first_held = end
                self._freed.notify_all()

    def file(self, size_bytes: int) -> NDArray[np.uint8]:
        """Map a file without a name; raises OSError where the disk has no room."""
        with tempfile.TemporaryFile(dir=self._spool, prefix="utopia-update-") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)  # or a full disk would show as SIGBUS
            with self._counting:
                self.spooled += 1
            return np.frombuffer(mmap.mmap(file.fileno(), size_bytes), dtype=np.uint8)

    def _refuse_ended(self, landing: Landing) -> None:
        if self._closed or landing.closed:
            raise NotAwaited("nobody waits for this update any longer")


class Landing:
    """One update on its way in. `take` is the sink of the request; afterwards `fault` and `tensors` tell."""

    def __init__(self, intake: Intake, check: SpecCheck, check_values: ValueCheck) -> None:
        self.fault: str | None = "no update came"
        self.first_held = 0
        self.closed = False
        self._intake = intake
        self._check = check
        self._check_values = check_values
        self._whole = False
        self._places: list[tuple[TensorSpec, int]] = []
        self._buffer: NDArray[np.uint8] | None = None

    def take(self, header: Header) -> Iterator[memoryview]:
        """Give room for the update, wait for it if need be, and look at each piece when it has come."""
        try:
            self.fault = self._check(header.tensors)
            size_bytes = self._lay_out(header.tensors)
            room = self._intake.room_for(self, size_bytes) if self.fault is None and size_bytes else None
            mapped = room is None and self.fault is None
            self._buffer = self._intake.file(size_bytes) if mapped and size_bytes else room
        except NotAwaited as error:
            self.fault = str(error)
        except (OverflowError, OSError) as error:
            self.fault = str(error)
            log.warning("an update is dropped: %s", error)
        if self.fault is not None or self._buffer is None:
            yield from dropped(header)
            return
        try:
            yield from self._pieces(self._buffer, in_turn=not mapped)
            self._whole = True
        finally:
            self._intake.turn_over(self, hold=self._whole and self.fault is None and not self.closed)
            if self.closed or not self._whole:
                self.close()

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """Give the tensors' values, once, flat and piece by piece; room is free as the next is asked for."""
        arrays = self.arrays()
        for spec, begin in self._places:
            flat = arrays.pop(spec.name).reshape(-1)
            items = max(1, BLOCK_BYTES // spec.dtype.itemsize)
            for start in range(0, flat.size, items):
                piece = flat[start : start + items]
                yield spec.name, piece
                self._intake.free(self, begin + start * spec.dtype.itemsize + piece.nbytes)
        self.close()

    def arrays(self) -> dict[str, Tensor]:
        """Give all tensors at once; they lie in the intake until `close`."""
        if not self._whole or self.fault is not None or self._buffer is None:
            raise ValueError(f"there is no update to take: {self.fault}")
        return {
            spec.name: self._buffer[start : start + spec.size_bytes].view(spec.dtype).reshape(spec.shape)
            for spec, start in self._places
        }

    def close(self) -> None:
        """Give the room back, whatever has come of the update."""
        self.closed = True
        self._buffer = None
        self._intake.free(self, None)

    def _lay_out(self, specs: tuple[TensorSpec, ...]) -> int:
        """Find each tensor's place, in the order of the wire; answers the bytes needed."""
        end = 0
        for spec in specs:
            self._places.append((spec, end))
            end += -(-spec.size_bytes // _ALIGNMENT) * _ALIGNMENT
        return end

    def _pieces(self, buffer: NDArray[np.uint8], *, in_turn: bool) -> Iterator[memoryview]:
        for spec, begin in self._places:
            for start in range(begin, begin + spec.size_bytes, BLOCK_BYTES):
                end = min(start + BLOCK_BYTES, begin + spec.size_bytes)
                piece = buffer[start:end]
                if in_turn and not self._is_free(end):
                    piece = np.empty(end - start, dtype=np.uint8)  # the update is dropped, the stream goes on
                yield piece.data
                if self.fault is None:
                    self.fault = self._check_values(spec.name, piece.view(spec.dtype))

    def _is_free(self, end: int) -> bool:
        try:
            self._intake.wait_free(self, end)
        except NotAwaited as error:
            self.fault = self.fault or str(error)
            return False
        return True
