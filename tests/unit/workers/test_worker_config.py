"""A worker's configuration is checked before anything is done."""

from __future__ import annotations

from typing import Any

import pytest

from workers.config import WorkerConfig
from workers.errors import (
    ConfigError,
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, "unknown worker keys: colour"),
        ({"pacing": 1}, "pacing is 1"),
        ({"power": True}, "power is True"),
        ({"power": -3}, "power is -3"),
        ({"listen": "198.18.0.2"}, "listen is '198.18.0.2'"),
        ({"listen": "198.18.0.2:70000"}, "listen is"),
        ({"orchestrator": "198.18.0.1:0"}, "orchestrator is '198.18.0.1:0'"),
        ({"compute_flops": None, "pacing": True}, "pacing needs compute_flops"),
        ({"node": ""}, "node is empty"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    good = {
        "node": "h1",
        "orchestrator": "198.18.0.1:7000",
        "token": None,
        "listen": "198.18.0.2:7001",
        "state_dir": "/nowhere",
        "power": 30,
        "compute_flops": 2.4e9,
        "layer_overhead_s": 0.001,
        "memory_bytes": 10**6,
        "pacing": True,
        "emulated": True,
    }
    assert WorkerConfig.from_mapping(good).listen == ("198.18.0.2", 7001)
    with pytest.raises(ConfigError, match=words):
        WorkerConfig.from_mapping(good | changes)
