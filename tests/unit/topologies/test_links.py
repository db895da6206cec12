"""Commands that make and impair wires, and the record of how late packets were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topologies.links import emulator, netem, nfqueue, shaper, wires
from topologies.links.lateness import WINDOW_S, LatenessRecord
from topologies.links.netlink import overflows
from topologies.specs import Impairment, LinkKind, LinkSpec

FORTH = Impairment(rate_bps=16e6, delay_s=0.02, jitter_s=0.001, loss_ratio=0.01, queue_packets=100)
BACK = Impairment(rate_bps=1e6, delay_s=0.0, queue_packets=10)
LINK = LinkSpec(
    name="h1-g1", kind=LinkKind.ACCESS, a="h1", b="g1", a_port=0, b_port=3, a_to_b=FORTH, b_to_a=BACK
)
THERE, HERE = wires.directions((LINK,))


def test_what_goes_from_a_to_b_enters_at_a_and_leaves_at_b():
    assert (THERE.name, THERE.ingress, THERE.egress, THERE.impairment) == (
        "h1-g1",
        "h1-g1.a",
        "h1-g1.b",
        FORTH,
    )
    assert (HERE.name, HERE.ingress, HERE.egress, HERE.impairment) == ("g1-h1", "h1-g1.b", "h1-g1.a", BACK)
    assert THERE.number != HERE.number


def test_a_wire_learns_nothing_and_floods_everything():
    a = wires.End(interface="h1-eth0", namespace_pid=11, mac="02:00:00:00:00:01")
    lines = wires.wire_lines(LINK, a, wires.End(interface="ut-g1.3", namespace_pid=22))
    assert "link add h1-g1.a type veth peer name h1-eth0 address 02:00:00:00:00:01 netns 11" in lines
    assert "link add h1-g1.b type veth peer name ut-g1.3 netns 22" in lines
    assert [line for line in lines if "learning off flood on" in line and "bridge_slave" in line] != []
    assert "stp_state 0" in lines[0]


def test_netem_makes_room_for_what_is_under_way():
    (line,) = netem.setup_lines(THERE)
    under_way = -(-0.021 * 16e6 // (8 * 1514))
    assert f"limit {100 + under_way:.0f} " in line
    assert "dev h1-g1.b root" in line
    assert "rate 16000000bit delay 20000us 1000us loss 1.000000%" in line


def test_netem_changes_in_place_and_only_what_changed():
    assert netem.change_lines(THERE, FORTH, FORTH) == []
    (line,) = netem.change_lines(THERE, FORTH, BACK)
    assert line.startswith("qdisc change dev h1-g1.b root handle 1: netem")


def test_the_shaper_changes_rate_and_queue_apart():
    faster = Impairment(rate_bps=32e6, delay_s=0.5, loss_ratio=0.5, queue_packets=100)
    (line,) = shaper.change_lines(THERE, FORTH, faster)
    assert line.startswith("class change dev h1-g1.b")
    assert "rate 32000000bit" in line
    longer = Impairment(rate_bps=16e6, delay_s=0.02, queue_packets=7)
    assert shaper.change_lines(THERE, FORTH, longer) == [
        "qdisc change dev h1-g1.b parent 1:1 handle 10: pfifo limit 7"
    ]


def test_only_directions_that_delay_or_lose_are_queued():
    assert nfqueue.needs_queue(FORTH)
    assert not nfqueue.needs_queue(BACK)
    _, (_, rules) = emulator.setup_commands("nfqueue", [THERE, HERE])
    assert rules.count("NFQUEUE") == 1
    assert "--physdev-in h1-g1.a -j NFQUEUE --queue-num 0" in rules


def test_a_plan_survives_writing_and_reading():
    plan = emulator.Plan(backend="nfqueue", seed=7, directions=(THERE, HERE))
    assert emulator.Plan.from_json(plan.to_json()) == plan


def test_overflows_are_read_per_queue():
    text = "    0  18384     0 1     0     3     4       40  1\n   17  18384     5 1  0  0  0  12  1\n"
    assert overflows(text) == {0: 7, 17: 0}


def test_late_packets_are_counted_to_the_precision_of_a_bin():
    record = LatenessRecord()
    for late_s, packets in ((0.001, 90), (0.0049, 5), (0.0065, 3), (0.1, 2)):
        record.add(late_s, packets, now_s=1.0)
    assert record.later_than(5.0) == 5
    assert record.later_than(1e6) == 0


def test_lateness_without_deliveries_is_unknown_not_zero():
    empty = LatenessRecord().since_start()
    assert (empty.packets, empty.p50_ms, empty.p99_ms, empty.max_ms) == (0, None, None, None)


def test_percentiles_count_packets_not_batches():
    record = LatenessRecord()
    record.add(0.0001, 995, now_s=1.0)
    record.add(0.050, 5, now_s=1.0)
    late = record.since_start()
    assert late.p50_ms == late.p99_ms == pytest.approx(0.1, rel=0.13)
    assert late.max_ms == 50


def test_the_recent_window_forgets():
    record = LatenessRecord()
    record.add(0.5, 10, now_s=100.0)
    record.add(0.001, 10, now_s=100.0 + WINDOW_S + 1)
    recent = record.recent(now_s=100.0 + WINDOW_S + 1)
    assert recent.packets == 10
    assert recent.max_ms < 2
    assert record.since_start().max_ms == 500
    assert record.recent(now_s=1000.0).p99_ms is None


@given(st.lists(st.floats(0, 20), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_within_what_was_seen(late_s):
    record = LatenessRecord()
    for value in late_s:
        record.add(value, 1, now_s=0.0)
    late = record.since_start()
    assert late.p50_ms <= late.p99_ms <= late.max_ms == max(late_s) * 1e3
