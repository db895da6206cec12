"""What rounds take of the orchestrator's memory: sizes of the model, whatever the number of nodes."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from orchestrator.finetune import parameters as arithmetic
from orchestrator.finetune.intake import Intake
from orchestrator.finetune.messages import Aggregate
from orchestrator.finetune.parameters import SumMemory, WeightedSum, spec_fault, value_fault
from orchestrator.finetune.versions import Versions
from scenarios.schema import Training
from workers.wire.frames import Header, TensorSpec

SHAPES = {"a": (700, 1000), "b": (300_000,), "c": (7,)}
SIZE_BYTES = 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())
TRAINING = Training()
WEIGHT = float(TRAINING.local_steps * TRAINING.batch_size)
HEADER = Header(
    kind="reply",
    fields={},
    tensors=tuple(TensorSpec(name=n, dtype=np.dtype(np.float32), shape=s) for n, s in SHAPES.items()),
    id=None,
    reply_to=1,
)


def drawn(scale: float) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {
        name: (scale * draw.standard_normal(shape, dtype=np.float32)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def run_round(versions: Versions, intake: Intake, epoch: int, *, nodes: int, fill: np.ndarray) -> None:
    """Do what a job does with its updates: two are coming in while one is being added up."""

    def landed() -> Iterator[tuple[str, np.ndarray]]:
        current = versions.newest
        landing = intake.landing(check=lambda specs: spec_fault(specs, current), check_values=value_fault)
        for piece in landing.take(HEADER):
            piece[:] = fill[: len(piece)]
        assert landing.fault is None
        yield from landing.pieces()

    for _ in range(nodes):
        versions.add(epoch, landed(), WEIGHT)
    versions.aggregate(
        Aggregate(
            epoch=epoch, base_version=epoch - 1, new_version=epoch, outer_learning_rate=1.0, contributions=()
        )
    )
    versions.forget_before(epoch)


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """Have the loops compiled, for every width of a sum: what that takes is no round's."""
    total = WeightedSum({"w": np.zeros(3, np.float32)}, unit=1.0)
    values = np.full(3, 250.0, np.float32)
    assert value_fault("w", values) is None
    for scale in (1e-5, 1e-3, 0.01, 1.0):
        total.add([("w", np.float32(scale) * values)], 1.0)
        total.mean()
        total = WeightedSum({"w": values}, unit=1.0)


def peak_sizes(*, nodes: int, rounds: int, value: float) -> float:
    fill = np.full(1 << 18, value, np.float32).view(np.uint8)
    gc.collect()
    tracemalloc.start()
    try:
        versions, intake = Versions(TRAINING, epochs=rounds), Intake(SIZE_BYTES)
        versions.begin(0, {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
        for epoch in range(1, rounds + 1):
            run_round(versions, intake, epoch, nodes=nodes, fill=fill)
        return tracemalloc.get_traced_memory()[1] / SIZE_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("nodes", [4, 12, 24])
def test_rounds_take_three_and_a_quarter_sizes_of_the_model_whatever_the_number_of_nodes(nodes: int) -> None:
    assert 3.2 < peak_sizes(nodes=nodes, rounds=5, value=1e-3) < 3.3


def test_updates_of_any_size_take_four_sizes_at_most() -> None:
    assert peak_sizes(nodes=4, rounds=4, value=250.0) < 4.1  # the block that widens counts twice


def test_from_the_fourth_round_on_no_large_memory_is_asked_for() -> None:
    fill = np.full(1 << 18, 1e-3, np.float32).view(np.uint8)
    versions, intake = Versions(TRAINING, epochs=8), Intake(SIZE_BYTES)
    versions.begin(0, {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    for epoch in (1, 2, 3):
        run_round(versions, intake, epoch, nodes=3, fill=fill)
    tracemalloc.start()
    try:
        for epoch in (4, 5, 6):
            run_round(versions, intake, epoch, nodes=3, fill=fill)
        assert tracemalloc.get_traced_memory()[1] < SIZE_BYTES / 20
    finally:
        tracemalloc.stop()


def test_a_version_that_somebody_holds_is_never_written_over() -> None:
    memory, base = SumMemory(), {"w": np.zeros(300_000, np.float32)}
    versions = [base]
    for number in range(1, 7):
        total = WeightedSum(base, unit=1.0, memory=memory)
        total.add([("w", np.full(300_000, 0.5, np.float32))], 1.0)
        versions.append(total.applied_to(versions[-1], learning_rate=1.0))
        del versions[:-3]
        values = [set(version["w"].tolist()) for version in versions]
        assert values == [{0.5 * count} for count in range(max(0, number - 2), number + 1)]


def test_a_block_takes_more_only_where_its_sums_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_BLOCK", 1000)
    values = drawn(1e-3)["b"][:5000]
    values[2500], values[3100] = 0.2, 250.0
    total = WeightedSum({"w": values}, unit=1.0)
    for _ in range(3):
        total.add([("w", values)], 1.0)
    assert [plane.dtype.itemsize for plane in total._high] == [1, 1, 2, 4, 1]
    np.testing.assert_allclose(total.mean()["w"], values, rtol=2e-7, atol=1e-12)


def test_what_has_no_room_is_taken_back_to_the_bit_before_the_block_widens() -> None:
    draw = np.random.default_rng(7)
    updates = [draw.uniform(-0.2, 0.2, 4000).astype(np.float32) for _ in range(8)]
    total = WeightedSum({"w": updates[0]}, unit=1.0)
    for update in updates:
        total.add([("w", update)], 0.7)
    assert total._high[0].dtype == np.int16
    exact = sum(np.rint(np.float64(u) * 0.7 * 2.0**41).astype(np.int64) for u in updates)
    found = (total._high[0].astype(np.int64) << 32) + total._low.astype(np.int64)
    assert (found == exact).all()
