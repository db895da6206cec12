"""Epochs of a deployment on its nodes: prepared, committed, retired; generations go on in the next one."""

from __future__ import annotations

from typing import Any

import pytest
from model_worlds import OTHER_CUTS, SLOW, THREE, MakeRing, config_with, refused, wait_for

from workers.errors import RequestRefused
from workers.models.kv_cache import cache_bytes
from workers.models.model_config import F32_BYTES


def test_drawn_tokens_go_on_over_another_route_as_they_would_have(make_ring: MakeRing) -> None:
    sampling = {"temperature": 1.5, "seed": 9}
    ring = make_ring("abcd", **SLOW)
    ring.deploy(THREE)
    ring.generate("a", "undisturbed", max_tokens=40, sampling=sampling)
    ring.wait_done("undisturbed")
    ring.generate("a", "r", max_tokens=40, sampling=sampling)
    wait_for(lambda: len(ring.tokens("r")) >= 5, "five tokens")
    ring.deploy([("a", 0, 1), ("d", 1, 4), ("b", 4, 6)], epoch=2)
    ring.wait_done("r")
    told, expected = ring.tokens("r"), ring.tokens("undisturbed")
    assert [entry["token"] for entry in told] == [entry["token"] for entry in expected]
    assert {entry["epoch"] for entry in told} == {1, 2}


def test_a_generation_goes_on_over_another_route_with_the_same_tokens(make_ring: MakeRing) -> None:
    ring = make_ring("abcd", **SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=40)
    wait_for(lambda: len(ring.tokens("r")) >= 5, "five tokens")
    other = [("a", 0, 1), ("d", 1, 4), ("b", 4, 6)]
    ring.deploy(other, epoch=2)
    for node in "abc":
        ring.ask(node, "shard.retire", deployment="d", epoch=1)
    ring.wait_done("r")

    told = ring.tokens("r")
    assert [entry["token"] for entry in told] == ring.reference(max_tokens=40)[0]
    assert [entry["epoch"] for entry in told] == sorted(entry["epoch"] for entry in told)
    assert {entry["epoch"] for entry in told} == {1, 2}
    first = next(entry for entry in told if entry["epoch"] == 2)
    assert first["replayed"] == 5 + first["index"]
    assert sum(entry["replayed"] > 0 for entry in told) == 1
    assert ring.hosts["c"].holdings() == []


def test_a_dead_stage_stalls_a_generation_until_the_next_epoch(make_ring: MakeRing) -> None:
    ring = make_ring("abcd", **SLOW)
    ring.deploy(THREE, request_timeout_s=0.3)
    ring.generate("a", "r", max_tokens=40)
    wait_for(lambda: len(ring.tokens("r")) >= 5, "five tokens")
    ring.deaf.add("b")
    wait_for(lambda: any(kind == "stalled" for _, kind, _ in ring.told), "the stall")
    stalled = next(fields for _, kind, fields in ring.told if kind == "stalled")
    assert (stalled["request"], stalled["epoch"]) == ("r", 1)
    assert ring.done("r") is None

    ring.deploy([("a", 0, 2), ("d", 2, 4), ("c", 4, 6)], epoch=2)
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference(max_tokens=40)[0]


def test_caches_of_a_route_that_died_do_not_stay_while_its_epoch_is_held(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=40)
    wait_for(lambda: len(ring.tokens("r")) >= 3, "three tokens")
    ring.deaf.add("b")  # the release of epoch 1 ends there
    ring.deploy([("a", 0, 3), ("c", 3, 6)], 2)
    wait_for(lambda: any(entry["epoch"] == 2 for entry in ring.tokens("r")), "a token of epoch 2")
    stages = ring.hosts["c"]._deployments.find("d").stages
    assert set(stages) == {1, 2}
    assert not stages[1]._caches
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference(max_tokens=40)[0]


def test_retiring_the_committed_epoch_ends_what_runs(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=100)
    wait_for(lambda: ring.tokens("r"), "a token")
    for node in "abc":
        ring.ask(node, "shard.retire", deployment="d", epoch=1)
    done = ring.wait_done("r")
    assert done["finish_reason"] == "error"
    assert "retired" in done["detail"]
    assert refused(ring, "a", "generate", deployment="d", request="r", prompt="x", max_tokens=1).code == (
        "no-such-deployment"
    )
    assert all(host._budget.used_bytes == 0 for host in ring.hosts.values())


def test_memory_is_checked_before_anything_is_held(make_ring: MakeRing) -> None:
    ring = make_ring()
    config = ring.model.config
    needed = (
        2 * config.layer_parameters * F32_BYTES
        + config.head_parameters * F32_BYTES
        + cache_bytes(config, layers=2, tokens=128)
    )
    ring = make_ring(memory_bytes=needed)
    replies = ring.prepare(THREE, 1)
    assert replies["a"].fields["memory_bytes"] == needed

    tight = make_ring(memory_bytes=needed - 1)
    with pytest.raises(RequestRefused) as caught:
        tight.prepare(THREE, 1)
    assert caught.value.code == "out-of-memory"
    assert str(needed - 1) in caught.value.detail
    assert tight.hosts["a"].holdings() == []
    assert tight.hosts["a"]._budget.used_bytes == 0


def test_layers_that_stay_need_not_be_sent_again(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    used = ring.hosts["a"]._budget.used_bytes
    for node, _, _ in THREE:
        ring.ask(node, "shard.prepare", **ring.prepare_fields(node, THREE, 2), reuse=True)
    ring.commit(THREE, 2)
    assert ring.hosts["a"]._budget.used_bytes == used
    assert ring.ask("b", "shard.holding", model=ring.digest).fields == {"layers": [2, 3], "head": False}
    for node in "abc":
        ring.ask(node, "shard.retire", deployment="d", epoch=1)
    ring.generate("a", "r")
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference()[0]


def test_reuse_of_layers_that_are_not_held_is_refused(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    fields = {**ring.prepare_fields("b", OTHER_CUTS, 2), "reuse": True}
    error = refused(ring, "b", "shard.prepare", **fields)
    assert error.code == "not-held"
    assert "layers 1, 4" in error.detail


def test_abort_leaves_the_running_epoch_alone(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    used = {name: host._budget.used_bytes for name, host in ring.hosts.items()}
    ring.generate("a", "r", max_tokens=30)
    ring.prepare(OTHER_CUTS, 2)
    for node in "abc":
        ring.ask(node, "shard.abort", deployment="d", epoch=2)
        ring.ask(node, "shard.abort", deployment="d", epoch=2)  # again: nothing happens
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference(max_tokens=30)[0]
    assert {name: host._budget.used_bytes for name, host in ring.hosts.items()} == used
    assert refused(ring, "b", "shard.abort", deployment="d", epoch=1).code == "committed"


def test_epochs_only_go_forward(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.prepare(THREE, 1)
    ring.deploy(THREE, epoch=2)
    assert refused(ring, "a", "shard.commit", deployment="d", epoch=1).code == "stale-epoch"
    assert refused(ring, "a", "shard.commit", deployment="d", epoch=3).code == "no-such-epoch"
    ring.ask("a", "shard.commit", deployment="d", epoch=2)  # again: nothing happens
    with pytest.raises(RequestRefused) as caught:
        ring.prepare(THREE, 2)
    assert caught.value.code == "already-prepared"


def test_an_unreachable_next_node_fails_the_preparation(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.unreachable.add("b")
    with pytest.raises(RequestRefused) as caught:
        ring.prepare(THREE, 1)
    assert (caught.value.code, "b is unreachable" in caught.value.detail) == ("unreachable", True)
    assert ring.hosts["a"]._budget.used_bytes == 0


def test_a_shard_that_differs_from_its_digest_is_refused(make_ring: MakeRing) -> None:
    ring = make_ring()
    fields = ring.prepare_fields("a", THREE, 1)
    tensors = ring.shard_tensors("a", THREE)
    with pytest.raises(RequestRefused) as caught:
        ring.ask("a", "shard.prepare", tensors, **fields, digest="0" * 64)
    assert caught.value.code == "digest-mismatch"
    assert ring.hosts["a"]._budget.used_bytes == 0
    found = ring.ask("a", "shard.prepare", tensors, **fields).fields["digest"]
    assert found in caught.value.detail


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"first_layer": 3, "end_layer": 2}, "layers [3, 2)"),
        ({"end_layer": 7}, "layers [0, 7)"),
        ({"roles": ["tail"]}, "roles"),
        ({"roles": ["head"]}, "'stage'"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"context_tokens": 257}, "context_tokens"),
        ({"next": {"node": "b", "address": "127.0.0.1", "port": 0}}, "port"),
        ({"previous": "a"}, "previous"),
        ({"tokenizer_json": None}, "tokenizer_json"),
        ({"tokenizer_json": "{}"}, "tokenizer.json"),
        ({"config": config_with(model_type="mamba")}, "model_type is 'mamba'"),
        ({"config": {**config_with(), "hidden_size": "wide"}}, "hidden_size"),
        ({"epoch": -1}, "epoch"),
        ({"request_timeout_s": float("nan")}, "request_timeout_s"),
    ],
)
def test_a_preparation_that_makes_no_sense_is_refused(
    make_ring: MakeRing, change: dict[str, Any], complaint: str
) -> None:
    ring = make_ring()
    with pytest.raises(RequestRefused) as caught:
        ring.prepare(THREE, 1, **change)
    assert complaint in str(caught.value)
    assert ring.hosts["a"].holdings() == []
    assert ring.hosts["a"]._budget.used_bytes == 0
