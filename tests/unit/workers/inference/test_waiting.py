"""Requests whose caches do not fit: put back, the youngest first, and answered in the end."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from model_worlds import OTHER_CUTS, SLOW, THREE, MakeRing, Ring, wait_for

from workers.errors import RequestRefused
from workers.inference import head
from workers.inference.waiting import Waiting
from workers.models.kv_cache import cache_bytes

LONG = "p" * 70
EIGHT = [f"r{number}" for number in range(8)]


@dataclass(frozen=True)
class One:
    age: int


def with_room_for(ring: Ring, node: str, *, tokens: int) -> None:
    """Leave a node no more memory than that beside what the deployment has set aside."""
    budget = ring.hosts[node]._budget
    more = cache_bytes(ring.model.config, layers=2, tokens=tokens)
    budget.limit_bytes = budget.used_bytes + more


def put_back(ring: Ring) -> int:
    return ring.hosts["a"]._deployments.find("d").head.put_back_total


@pytest.mark.parametrize(("node", "prompt"), [("b", "hello"), ("a", LONG), ("c", LONG)])
def test_eight_requests_with_room_for_two_are_all_answered_as_if_alone(make_ring: MakeRing, node, prompt):
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    with_room_for(ring, node, tokens=128)
    for request in EIGHT:
        ring.generate("a", request, prompt=prompt, max_tokens=30 if prompt is LONG else 70)
    for request in EIGHT:
        assert ring.wait_done(request)["finish_reason"] == "length"
        tokens = [entry["token"] for entry in ring.tokens(request)]
        assert tokens == ring.reference(prompt, max_tokens=len(tokens))[0]
        assert [entry["index"] for entry in ring.tokens(request)] == list(range(len(tokens)))
    assert 6 <= put_back(ring) <= 8 * 8
    stages = [ring.hosts[name]._deployments.find("d").stages[1] for name in "abc"]
    wait_for(lambda: not any(stage._caches for stage in stages), "the release of all caches")


def test_a_deployment_keeps_to_its_limit_and_answers_all(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    sequence = cache_bytes(ring.model.config, layers=6, tokens=128)
    ring.deploy(THREE, kv_cache_bytes=sequence)
    reserves = [ring.hosts[name]._deployments.find("d").reserve for name in "abc"]
    for request in EIGHT[:4]:
        ring.generate("a", request, max_tokens=60)
    used = []
    wait_for(lambda: used.append([one.used_bytes for one in reserves]) or ring.done("r3"), "the last")
    for request in EIGHT[:4]:
        assert ring.wait_done(request)["finish_reason"] == "length"
    assert [max(of_one) for of_one in zip(*used, strict=True)] == [sequence // 3] * 3
    assert ring.hosts["b"].caches()["limit_bytes"] == {"d": sequence // 3}
    assert ring.hosts["a"].caches()["put_back"]["d"] == put_back(ring) > 0


def test_a_limit_below_one_sequence_is_refused_by_the_node(make_ring: MakeRing) -> None:
    ring = make_ring()
    sequence = cache_bytes(ring.model.config, layers=6, tokens=128)
    with pytest.raises(RequestRefused, match="kv_cache_bytes") as caught:
        ring.deploy(THREE, kv_cache_bytes=sequence - 3)
    assert caught.value.code == "out-of-memory"


def test_who_came_first_ends_first(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    with_room_for(ring, "b", tokens=64)
    for request in EIGHT:
        ring.generate("a", request, max_tokens=60)
    for request in EIGHT:
        ring.wait_done(request)
    ended = [fields["request"] for _, kind, fields in ring.told if kind == "done"]
    assert ended.index("r0") < 3
    assert ended.index("r7") > 4


def test_one_that_waits_can_be_cancelled_and_is_told_to_wait(make_ring, monkeypatch) -> None:
    monkeypatch.setattr(head, "WAITING_INTERVAL_S", 0.05)
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    with_room_for(ring, "b", tokens=0)
    ring.generate("a", "r", prompt=LONG, max_tokens=50)
    ring.generate("a", "s", prompt=LONG, max_tokens=50)
    wait_for(lambda: put_back(ring), "one to be put back")
    wait_for(lambda: ("a", "waiting", {"deployment": "d", "request": "s"}) in ring.told, "being told")
    ring.ask("a", "cancel", deployment="d", request="s")
    assert ring.wait_done("s")["finish_reason"] == "cancelled"
    assert ring.wait_done("r")["finish_reason"] == "length"


def test_those_that_wait_go_on_in_the_next_epoch(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    with_room_for(ring, "b", tokens=0)
    for request in ("r", "s", "t"):
        ring.generate("a", request, prompt=LONG, max_tokens=50)
    wait_for(lambda: put_back(ring) >= 2, "two to be put back")
    ring.hosts["b"]._budget.limit_bytes = 10**8
    ring.deploy(OTHER_CUTS, epoch=2)
    for request in ("r", "s", "t"):
        assert ring.wait_done(request)["finish_reason"] == "length"
        assert [entry["token"] for entry in ring.tokens(request)] == ring.reference("p" * 70, max_tokens=50)[
            0
        ]


def test_one_that_does_not_fit_alone_ends_with_the_reason(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    reserve = ring.hosts["b"]._deployments.find("d").reserve
    reserve.set_aside(0, "none")
    ring.hosts["b"]._budget.limit_bytes = ring.hosts["b"]._budget.used_bytes
    ring.generate("a", "r", max_tokens=5)
    done = ring.wait_done("r")
    assert done["finish_reason"] == "error"
    assert done["detail"].startswith("out-of-memory: b: ")


def test_one_at_a_time_is_tried_the_oldest_first() -> None:
    waiting: Waiting[One] = Waiting()
    first, second, third = One(1), One(2), One(3)
    for one in (third, first, second):
        waiting.put(one)
    assert waiting.next() is None  # there was no room for them
    waiting.ended(One(0))
    assert waiting.next() is first
    assert waiting.next() is None  # not until it is known to fit
    waiting.made_token(first)
    assert waiting.next() is second
    waiting.put(second)
    waiting.made_token(first)
    assert waiting.next() is None  # no room until another ends
    waiting.ended(third)
    assert waiting.next() is None  # what waited took none
    waiting.ended(first)
    assert waiting.next() is second
    assert len(waiting) == 0


def test_one_that_has_not_been_tried_says_nothing_of_the_room() -> None:
    waiting: Waiting[One] = Waiting()
    waiting.put(One(1), room=True)
    assert waiting.next() == One(1)
