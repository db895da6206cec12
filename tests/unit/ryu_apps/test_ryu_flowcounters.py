"""The counters of pair rules, from the switches' replies to the loss of a link."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ryu.ofproto import ofproto_v1_3_parser as parser
from ryu_world import World

from ryu_apps import flowcounters, openflow
from ryu_apps.paths import Hop

COOKIE = openflow.COOKIE_PAIR | 7
OVER_12 = Hop(src=1, src_port=2, dst=2, dst_port=1)


def entry(packets: int, out_port: int, *, cookie: int = COOKIE, duration_s: float = 100.0) -> Any:
    instruction = parser.OFPInstructionActions(4, [parser.OFPActionOutput(out_port)])
    return SimpleNamespace(
        cookie=cookie,
        packet_count=packets,
        duration_sec=int(duration_s),
        duration_nsec=0,
        instructions=[instruction],
    )


@pytest.fixture
def world() -> World:
    world = World()
    world.advance(3.0)
    return world


def ask(world: World, replies: dict[int, list[Any]]) -> None:
    """Let one round pass: every switch is asked at the same moment and answers."""
    counters = world.parts.flow_counters
    counters._sleep = lambda seconds: None
    counters._ask(list(world.parts.network.switches.values()))
    for dpid, body in replies.items():
        counters.replied(dpid, body, more=False)
    world.advance(1.0)


def test_what_one_switch_sent_and_the_next_did_not_receive_is_lost_on_the_link(world: World) -> None:
    for second in range(20):
        sent = 1000 + 200 * second
        received = 1000 + 190 * second
        ask(world, {1: [entry(sent, 2)], 2: [entry(received, 11)]})
    tally = world.parts.flow_counters.tally(world.now, OVER_12)
    assert tally.lost / tally.sent == pytest.approx(0.05, abs=0.002)
    link = world.parts.views.values(world.now, "link", OVER_12, False)
    assert link.loss_ratio.source == "counters+probe"
    assert link.loss_ratio.value == pytest.approx(0.05, abs=0.003)


def test_the_order_of_the_replies_does_not_matter(world: World) -> None:
    for second in range(10):
        ask(world, {2: [entry(100 * second, 11)], 1: [entry(100 * second, 2)]})
    assert world.parts.flow_counters.tally(world.now, OVER_12).sent > 500


def test_a_reply_in_parts_counts_when_it_is_whole(world: World) -> None:
    counters = world.parts.flow_counters
    counters._sleep = lambda seconds: None
    counters._ask(list(world.parts.network.switches.values()))
    counters.replied(1, [entry(5, 2)], more=True)
    assert counters.counts["read"] == 0
    counters.replied(1, [entry(5, 2, cookie=COOKIE + 1)], more=False)
    assert counters.counts["read"] == 2


def test_an_answer_that_nobody_asked_for_is_ignored(world: World) -> None:
    world.parts.flow_counters.replied(1, [entry(5, 2)], more=False)
    assert world.parts.flow_counters.counts["read"] == 0


def test_a_way_that_changes_is_measured_anew_and_loses_nothing(world: World) -> None:
    for second in range(10):
        ask(world, {1: [entry(100 * second, 2)], 2: [entry(100 * second, 4)], 4: [entry(100 * second, 11)]})
    for second in range(10):
        rules = {
            1: [entry(100 * second, 3, duration_s=second)],
            3: [entry(100 * second, 4, duration_s=second)],
        }
        ask(world, {**rules, 4: [entry(1000 + 100 * second, 11)]})
    over_34 = Hop(src=3, src_port=4, dst=4, dst_port=3)
    tally = world.parts.flow_counters.tally(world.now, over_34)
    assert tally.sent > 500
    assert abs(tally.lost) < 3


def test_rules_of_one_cookie_that_go_different_ways_tell_nothing(world: World) -> None:
    for second in range(10):
        both = [entry(100 * second, 2), entry(100 * second, 3)]
        ask(world, {1: both, 2: [entry(100 * second, 11)]})
    assert world.parts.flow_counters.tally(world.now, OVER_12).sent == 0


def test_a_link_that_went_down_is_forgotten(world: World) -> None:
    for second in range(5):
        ask(world, {1: [entry(100 * second, 2)], 2: [entry(100 * second, 11)]})
    world.parts.network.link_lost(world.now, OVER_12)
    assert world.parts.flow_counters.tally(world.now, OVER_12).sent == 0
    assert world.parts.flow_counters._ways == {}


def test_many_rules_are_read_more_rarely(world: World) -> None:
    ask(world, {1: [entry(1, 2, cookie=COOKIE + number) for number in range(3000)]})
    assert world.parts.flow_counters.interval_s() == 3000 / flowcounters.ENTRIES_PER_S


def test_only_open_vswitch_has_a_rule_written_anew_before_the_question(world: World) -> None:
    counters = world.parts.flow_counters
    counters._sleep = lambda seconds: None
    asked: list[tuple[int, str]] = []
    for dpid, switch in world.switches.items():
        switch.send_msg = lambda message, dpid=dpid: asked.append((dpid, type(message).__name__))  # type: ignore[method-assign]
    counters.described(1, b"Open vSwitch")
    counters.described(2, b"Hardware")
    counters._ask(list(world.parts.network.switches.values()))
    assert (1, "OFPFlowMod") in asked
    assert [dpid for dpid, kind in asked if kind == "OFPFlowMod"] == [1]
    assert sorted(dpid for dpid, kind in asked if kind == "OFPFlowStatsRequest") == [1, 2, 3, 4]
