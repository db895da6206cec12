"""Port counters: which replies make rates, and when a packet train of ours is taken off."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ryu_world import World

TRAIN_BYTES = 138_000


class Counters:
    """Port 11 of switch 1 as its switch counts it: 100 kB/s of others, and the trains that cross it."""

    def __init__(self) -> None:
        self.world = World()
        self.monitor = self.world.parts.monitor
        self.seconds, self.byte_count = 1000.0, 5_000_000

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds
        self.byte_count += round(100_000 * seconds)

    def train(self) -> None:
        """Have a train sent and counted."""
        self.monitor.add_own(1, 11, tx=TRAIN_BYTES, rx=TRAIN_BYTES)
        self.byte_count += TRAIN_BYTES

    def poll(self) -> int:
        self.monitor.poll(self.world.parts.network.switches[1])
        return self.world.switches[1].polls[-1]

    def reply(self, transaction: int) -> None:
        names = [f"{way}_{what}" for way in ("tx", "rx") for what in ("packets", "dropped", "errors")]
        entry: Any = SimpleNamespace(
            port_no=11,
            duration_sec=int(self.seconds),
            duration_nsec=round(self.seconds % 1 * 1e9),
            tx_bytes=self.byte_count,
            rx_bytes=self.byte_count,
            **dict.fromkeys(names, 0),
        )
        self.monitor.replied(self.seconds, 1, transaction, [entry])

    @property
    def raw_bps(self) -> tuple[float | None, float | None]:
        sent, received = self.monitor.sent(1, 11), self.monitor.received(1, 11)
        return sent.rate(self.seconds).raw, received.rate(self.seconds).raw


@pytest.fixture
def counters() -> Counters:
    port = Counters()
    port.reply(port.poll())
    return port


def test_a_train_is_taken_off_the_interval_that_counted_it(counters: Counters) -> None:
    counters.pass_by(0.5)
    counters.train()
    counters.pass_by(0.4)
    counters.reply(counters.poll())
    assert counters.raw_bps == (pytest.approx(800_000), pytest.approx(800_000))


def test_a_train_sent_while_the_reply_is_under_way_is_not_in_it(counters: Counters) -> None:
    counters.pass_by(0.9)
    transaction = counters.poll()
    counters.monitor.add_own(1, 11, tx=TRAIN_BYTES, rx=TRAIN_BYTES)
    counters.reply(transaction)
    assert counters.raw_bps == (pytest.approx(800_000), pytest.approx(800_000))


def test_replies_to_other_requests_make_no_rates(counters: Counters) -> None:
    """A train that such a reply holds is not known to be in it: it would look like somebody's traffic."""
    counters.pass_by(0.9)
    counters.reply(counters.poll())
    counters.train()
    counters.pass_by(0.1)
    counters.reply(transaction=999)
    assert counters.raw_bps == (pytest.approx(800_000), pytest.approx(800_000))
    assert counters.monitor.sent(1, 11).rate(counters.seconds).age_s == pytest.approx(0.1)
    counters.pass_by(0.8)
    counters.reply(counters.poll())
    assert counters.raw_bps == (pytest.approx(800_000), pytest.approx(800_000))


def test_a_late_reply_still_counts_by_what_was_known_when_it_was_asked_for(counters: Counters) -> None:
    counters.pass_by(0.9)
    first = counters.poll()
    counters.monitor.add_own(1, 11, tx=TRAIN_BYTES, rx=TRAIN_BYTES)
    counters.poll()
    counters.reply(first)
    assert counters.raw_bps == (pytest.approx(800_000), pytest.approx(800_000))


def test_polls_that_are_never_answered_are_forgotten(counters: Counters) -> None:
    lost = counters.poll()
    for _ in range(20):
        counters.poll()
    counters.pass_by(0.9)
    counters.reply(lost)
    assert counters.raw_bps == (None, None)


def test_a_port_that_comes_up_again_owes_no_old_trains(counters: Counters) -> None:
    counters.train()
    transaction = counters.poll()
    network = counters.world.parts.network
    switch = network.switches[1]
    counters.monitor._port_up((switch, switch.ports[11]))
    counters.reply(transaction)
    assert counters.raw_bps == (None, None)
    counters.pass_by(0.9)
    counters.reply(counters.poll())
    assert counters.raw_bps == (None, None)
    counters.pass_by(0.9)
    counters.reply(counters.poll())
    assert counters.raw_bps == (pytest.approx(800_000), pytest.approx(800_000))
