"""Updates on their way in: whose turn it is, what is dropped, and what memory they take."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from orchestrator.finetune.intake import Intake
from workers.wire.frames import Header, TensorSpec

SHAPES = {"a": (300, 1000), "b": (7,), "c": (50, 1000)}
SIZE = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())


def update(value: float) -> dict[str, np.ndarray]:
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


class Sender:
    """Feeds a landing as a link does, up to `pieces` of them, in a thread of its own."""

    def __init__(self, landing, tensors, *, pieces: int | None = None) -> None:
        specs = tuple(
            TensorSpec(name=name, dtype=array.dtype, shape=array.shape) for name, array in tensors.items()
        )
        self.header = Header(kind="reply", fields={}, tensors=specs, id=None, reply_to=1)
        self.landing = landing
        self.body = b"".join(array.tobytes() for array in tensors.values())
        self.pieces = pieces
        self.sent = 0
        self.thread = threading.Thread(target=self._send, daemon=True)
        self.thread.start()

    def _send(self) -> None:
        sink = self.landing.take(self.header)
        for number, piece in enumerate(sink):
            if number == self.pieces:
                break
            piece[:] = self.body[self.sent : self.sent + len(piece)]
            self.sent += len(piece)
        sink.close()

    def wait(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive()


def until(condition) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def landing(intake, *, check=lambda specs: None, check_values=lambda name, values: None):
    return intake.landing(check=check, check_values=check_values)


def taken(some) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    for name, piece in some.pieces():
        parts.setdefault(name, []).append(piece.copy())
    return {name: np.concatenate(pieces).reshape(SHAPES[name]) for name, pieces in parts.items()}


def test_an_update_comes_through_whole() -> None:
    first = landing(Intake(SIZE))
    Sender(first, update(3.0)).wait()
    assert first.fault is None
    assert {name: array.tolist() for name, array in taken(first).items()} == {
        name: array.tolist() for name, array in update(3.0).items()
    }


def test_many_at_once_come_through_in_one_buffer() -> None:
    intake = Intake(SIZE, patience_s=60)
    landings = [landing(intake) for _ in range(6)]
    senders = [Sender(some, update(value)) for value, some in enumerate(landings)]
    left = dict(enumerate(landings))
    while left:
        until(lambda: any(some.fault is None and some._whole for some in left.values()))
        value = next(value for value, some in left.items() if some._whole)
        found = taken(left.pop(value))
        assert all((array == value).all() for array in found.values())
    for sender in senders:
        sender.wait()
    assert intake._memory is not None


def test_the_next_one_fills_what_the_one_before_has_freed() -> None:
    intake = Intake(SIZE, patience_s=60)
    first, second = landing(intake), landing(intake)
    Sender(first, update(1.0)).wait()
    sender = Sender(second, update(2.0))
    pieces = first.pieces()
    begun, piece = next(pieces)
    assert (begun, piece.nbytes) == ("a", 1 << 20)
    assert sender.sent == 0
    name, rest = next(pieces)
    until(lambda: sender.sent == 1 << 20)
    assert (name, rest.nbytes) == ("a", 4 * 300_000 - (1 << 20))
    name, b = next(pieces)
    until(lambda: sender.sent == 4 * 300_000)
    assert (name, set(b.tolist())) == ("b", {1.0})
    assert (next(pieces)[1] == 1.0).all()
    assert next(pieces, None) is None
    sender.wait()
    assert all((array == 2.0).all() for array in taken(second).values())


def test_nobody_waits_for_one_on_a_thin_link() -> None:
    intake = Intake(SIZE, patience_s=0.05)
    slow, fast = landing(intake), landing(intake)
    gate = threading.Event()
    specs = Sender(landing(Intake(SIZE)), update(0.0)).header
    stuck = slow.take(specs)
    next(stuck)
    Sender(fast, update(5.0)).wait()
    assert all((array == 5.0).all() for array in taken(fast).values())
    gate.set()
    stuck.close()
    third = landing(intake)
    Sender(third, update(6.0)).wait()
    assert taken(third)["b"].tolist() == [6.0] * 7


def test_one_that_breaks_off_leaves_the_turn_to_the_next() -> None:
    intake = Intake(SIZE, patience_s=60)
    broken, next_one = landing(intake), landing(intake)
    Sender(broken, update(1.0), pieces=1).wait()
    Sender(next_one, update(2.0)).wait()
    assert (taken(next_one)["a"] == 2.0).all()
    with pytest.raises(ValueError, match="no update"):
        taken(broken)


def test_one_with_a_fault_is_read_to_its_end_and_never_given() -> None:
    intake = Intake(SIZE, patience_s=60)
    odd = landing(intake, check_values=lambda name, values: "b is odd" if name == "b" else None)
    sender = Sender(odd, update(1.0))
    sender.wait()
    assert (odd.fault, sender.sent) == ("b is odd", SIZE)
    wrong = landing(intake, check=lambda specs: "wrong shapes")
    sender = Sender(wrong, update(1.0))
    sender.wait()
    assert (wrong.fault, sender.sent) == ("wrong shapes", SIZE)
    with pytest.raises(ValueError, match="wrong shapes"):
        taken(wrong)


def test_one_larger_than_the_model_is_dropped() -> None:
    big = landing(Intake(1000))
    sender = Sender(big, update(1.0))
    sender.wait()
    assert "the model 1000" in str(big.fault)
    assert sender.sent == SIZE


def test_a_disk_without_room_costs_that_update_only(monkeypatch) -> None:
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", no_room)
    intake = Intake(SIZE, patience_s=0.0)
    first, second = landing(intake), landing(intake)
    held = first.take(Sender(landing(Intake(SIZE)), update(0.0)).header)
    next(held)
    sender = Sender(second, update(1.0))
    sender.wait()
    assert "No space left" in str(second.fault)
    assert sender.sent == SIZE


def test_one_that_nobody_waits_for_any_longer_gives_its_room_back() -> None:
    intake = Intake(SIZE, patience_s=60)
    given_up = landing(intake)
    Sender(given_up, update(1.0)).wait()
    waiting = landing(intake)
    sender = Sender(waiting, update(2.0))
    given_up.close()
    sender.wait()
    assert (taken(waiting)["c"] == 2.0).all()


def test_closing_ends_all_waiting() -> None:
    intake = Intake(SIZE, patience_s=60)
    held, waiting = landing(intake), landing(intake)
    Sender(held, update(1.0)).wait()
    sender = Sender(waiting, update(2.0))
    intake.close()
    sender.wait()
    assert "nobody waits" in str(waiting.fault)
    assert sender.sent == SIZE


def test_a_closed_intake_keeps_no_memory_beyond_what_is_held() -> None:
    intake = Intake(SIZE, patience_s=60)
    held = landing(intake)
    Sender(held, update(4.0)).wait()
    memory = weakref.ref(intake._memory)
    intake.close()
    assert (taken(held)["b"] == 4.0).all()
    gc.collect()
    assert memory() is None
