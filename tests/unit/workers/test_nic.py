"""A worker's packet counters are those of the interface with its address."""

from __future__ import annotations

import time
from types import SimpleNamespace

import psutil
import pytest

from workers.nic import MAX_READINGS, PacketCounters, read_at


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two interfaces with counters; tests may change addresses."""
    addresses = {"lo": "127.0.0.1", "h1-eth0": "198.18.1.1", "mgmt": "192.0.2.7"}
    counters = {
        "lo": SimpleNamespace(packets_recv=1, packets_sent=1),
        "h1-eth0": SimpleNamespace(packets_recv=30, packets_sent=20),
        "mgmt": SimpleNamespace(packets_recv=7, packets_sent=8),
    }
    monkeypatch.setattr(
        psutil, "net_if_addrs", lambda: {name: [SimpleNamespace(address=a)] for name, a in addresses.items()}
    )
    monkeypatch.setattr(
        psutil, "net_io_counters", lambda pernic, nowrap: {n: counters[n] for n in addresses if n in counters}
    )
    return addresses


def test_the_counters_are_those_of_the_interface_with_the_address(interfaces: dict[str, str]) -> None:
    told = PacketCounters("198.18.1.1").read()
    assert told is not None
    assert (told["rx_packets"], told["tx_packets"]) == (30, 20)
    assert abs(told["at"] - time.time()) < 5


@pytest.mark.parametrize("address", ["127.0.0.1", "198.18.1.9", "0.0.0.0"])
def test_without_such_an_interface_there_is_nothing_to_tell(address: str, interfaces: dict[str, str]) -> None:
    assert PacketCounters(address).read() is None


def test_an_interface_that_goes_and_comes_back_under_another_name_is_found_again(
    interfaces: dict[str, str],
) -> None:
    counters = PacketCounters("198.18.1.1")
    assert counters.read() is not None
    del interfaces["h1-eth0"]
    assert counters.read() is None
    interfaces["mgmt"] = "198.18.1.1"
    told = counters.read()
    assert told is not None
    assert told["rx_packets"] == 7


def test_a_reading_during_which_the_processor_was_taken_away_is_made_again() -> None:
    times = iter([10.0, 10.02, 10.03, 10.0302])
    values = iter([100, 200])
    at, value = read_at(lambda: next(values), lambda: next(times))
    assert (at, value) == (pytest.approx(10.0301), 200)


def test_where_every_reading_is_slow_the_quickest_counts() -> None:
    took_s = [0.020, 0.008, 0.003, 0.009, 0.012]
    times = iter([moment for start, took in enumerate(took_s) for moment in (float(start), start + took)])
    values = iter(range(MAX_READINGS))
    assert read_at(lambda: next(values), lambda: next(times)) == (pytest.approx(2.0015), 2)
