"""Rings of shard hosts, closed after each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from model_worlds import MakeRing, Ring


@pytest.fixture
def make_ring() -> Iterator[MakeRing]:
    rings: list[Ring] = []

    def make(*args: Any, **kwargs: Any) -> Ring:
        rings.append(Ring(*args, **kwargs))
        return rings[-1]

    yield make
    for ring in rings:
        ring.close()
