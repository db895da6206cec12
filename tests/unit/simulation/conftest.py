"""Give these tests the small world to simulate."""

from __future__ import annotations

import pytest
from simulated_world import Simulated


@pytest.fixture
def simulated() -> Simulated:
    return Simulated()
