"""What hosts report of their interfaces, and what it tells of their links."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ryu_world import World

from ryu_apps.discovery import Host
from ryu_apps.errors import BadRequestError
from ryu_apps.hostcounters import MAX_SKEW_S, Report

H1 = "198.18.1.1"


@pytest.fixture
def world() -> World:
    world = World()
    world.host(H1, 1, 11)
    world.advance(2.0)
    world.say_arp(H1, "198.18.1.2")
    world.deliver()
    world.advance(3.0)
    return world


def known(world: World) -> Host:
    return world.parts.network.hosts[H1]


def port_reads(world: World, *, tx: int, rx: int) -> None:
    entry = SimpleNamespace(
        port_no=11, duration_sec=int(world.now) - 1_000_000_000, duration_nsec=0, tx_packets=tx, rx_packets=rx
    )
    world.parts.monitor._tell(world.now, 1, [entry])


def say(world: World, *, rx: int, tx: int) -> None:
    world.parts.host_counters.report(
        world.now, known(world), Report(at=world.now, rx_packets=rx, tx_packets=tx)
    )


def exchange(world: World, seconds: int, *, lost_to: float, lost_from: float, start: int = 0) -> None:
    """Let a host and its switch send each other 200 packets a second, and both ends be read."""
    for second in range(start, start + seconds):
        packets = 200 * second
        say(world, rx=round(packets * (1 - lost_to)), tx=packets)
        port_reads(world, tx=packets, rx=round(packets * (1 - lost_from)))
        world.advance(1.0)


def losses(world: World) -> tuple[float | None, float | None]:
    """Return the loss to and from the host as the API shows it."""
    values = world.parts.views.all_values()
    to_host, from_host = f"0000000000000001.11-{H1}", f"{H1}-0000000000000001.11"
    return values[to_host].loss_ratio.value, values[from_host].loss_ratio.value


def test_each_direction_of_an_access_link_has_its_own_loss(world: World) -> None:
    exchange(world, 20, lost_to=0.10, lost_from=0.02)
    assert losses(world) == (pytest.approx(0.10, abs=0.01), pytest.approx(0.02, abs=0.01))
    value = world.parts.views.all_values()[f"{H1}-0000000000000001.11"].loss_ratio
    assert value.source == "counters"
    assert value.samples > 2000


def test_a_queue_whose_direction_is_not_known_widens_what_the_counters_say(world: World) -> None:
    exchange(world, 20, lost_to=0.01, lost_from=0.01)
    calm = world.parts.host_counters.tally(world.now, H1, to_host=True)
    stream = world.parts.prober.host_stream(H1)
    assert stream is not None
    for _ in range(100):
        stream.delay.add(world.now, 0.3)
    exchange(world, 2, lost_to=0.01, lost_from=0.01, start=20)
    queued = world.parts.host_counters.tally(world.now, H1, to_host=True)
    assert queued.variance > 20 * calm.variance


def test_without_reports_echoes_stand_alone_again(world: World) -> None:
    exchange(world, 20, lost_to=0.10, lost_from=0.10)
    world.advance(20.0)
    assert losses(world) == (0.0, 0.0)


def test_the_port_is_asked_when_a_report_comes(world: World) -> None:
    asked = []
    world.switches[1].send_msg = lambda message: asked.append(type(message).__name__)  # type: ignore[method-assign]
    say(world, rx=0, tx=0)
    assert asked == ["OFPPortStatsRequest"]


def test_the_port_is_asked_for_when_the_next_report_will_have_been_counted(world: World) -> None:
    exchange(world, 5, lost_to=0.0, lost_from=0.0)
    (due, place), *others = world.parts.host_counters._asks[-1:]
    assert (place, others) == ((1, 11), [])
    assert due == pytest.approx(world.now, abs=0.02)


def test_ports_are_asked_when_it_is_time(world: World) -> None:
    counters, asked = world.parts.host_counters, []
    exchange(world, 5, lost_to=0.0, lost_from=0.0)
    world.switches[1].send_msg = lambda message: asked.append(type(message).__name__)  # type: ignore[method-assign]
    world.now += 0.1
    with pytest.raises(AssertionError, match="no loop runs"):
        counters.run()
    assert set(asked) == {"OFPPortStatsRequest"}
    assert counters._asks == []


def test_a_host_that_received_more_than_was_sent_is_refused_and_counted(world: World) -> None:
    with pytest.raises(BadRequestError, match="more packets received than sent"):
        exchange(world, 20, lost_to=-0.5, lost_from=0.0)
    counts = world.parts.host_counters.counts
    assert (counts["impossible"], counts["refused"]) == (1, 1)
    assert losses(world) == (0.0, 0.0)


def test_a_host_that_starts_its_interface_anew_tells_no_loss(world: World) -> None:
    exchange(world, 10, lost_to=0.0, lost_from=0.0)
    for second in range(10, 20):
        say(world, rx=200 * (second - 10), tx=200 * (second - 10))
        port_reads(world, tx=200 * second, rx=200 * second)
        world.advance(1.0)
    assert losses(world) == (pytest.approx(0.0, abs=0.002), pytest.approx(0.0, abs=0.002))


@pytest.mark.parametrize("wrong", [-1.0, 2 * MAX_SKEW_S, -2 * MAX_SKEW_S])
def test_reports_of_another_time_are_refused(world: World, wrong: float) -> None:
    say(world, rx=1, tx=1)
    report = Report(at=world.now + wrong, rx_packets=2, tx_packets=2)
    with pytest.raises(BadRequestError, match="at is"):
        world.parts.host_counters.report(world.now, known(world), report)
    assert world.parts.host_counters.counts["refused"] == 1


def test_two_hosts_at_one_port_cannot_be_told_apart(world: World) -> None:
    exchange(world, 20, lost_to=0.10, lost_from=0.10)
    other = world.parts.network.host_seen(world.now, "198.18.1.9", bytes(6), 1, 11)
    assert other is not None
    world.parts.host_counters.report(world.now, other, Report(at=world.now, rx_packets=0, tx_packets=0))
    assert losses(world) == (0.0, 0.0)


def test_a_host_that_is_lost_is_forgotten(world: World) -> None:
    exchange(world, 5, lost_to=0.0, lost_from=0.0)
    world.parts.network.forget_silent(world.now + 1e6, 1.0)
    assert world.parts.host_counters._accesses == {}
    assert world.parts.monitor.readers == {}


@pytest.mark.parametrize(("rx", "tx"), [(-1, 0), (0, 1 << 64)])
def test_a_report_holds_counters_of_64_bits(rx: int, tx: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 2\\^64"):
        Report(at=1.0, rx_packets=rx, tx_packets=tx)
