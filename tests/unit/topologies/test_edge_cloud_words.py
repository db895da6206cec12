"""The words after `mn --topo edge_cloud` end the program cleanly when they cannot be used.

Any other exception makes `mn` clean up the whole machine, running testbeds included.
"""

from typing import Any

import pytest

from topologies import edge_cloud
from topologies.errors import TestbedError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"hosts": 0}, "topology.hosts: 0"),
        ({"hosts": "two"}, "topology.hosts: 'two'"),
        ({"domains": "x"}, "topology.domains: 'x'"),
        ({"setup": 9}, "links.setup: 9"),
        ({"prefix": "TOOLONG"}, "network.prefix: 'TOOLONG'"),
        ({"foo": 1}, "does not know foo; it knows hosts, domains, cores, setup, seed, prefix"),
    ],
)
def test_words_that_cannot_be_used_end_the_program(words: dict[str, Any], said: str) -> None:
    with pytest.raises(SystemExit) as end:
        edge_cloud.EdgeCloud(**words)
    assert said in str(end.value)


def test_a_prefix_that_a_living_testbed_has_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(prefix: str) -> None:
        raise TestbedError(f"network {prefix!r} is up already (process 1)")

    monkeypatch.setattr(edge_cloud.Journal, "create", taken)
    with pytest.raises(SystemExit, match="network 'ut' is up already"):
        edge_cloud.EdgeCloud(prefix="ut")
