"""Split inference over shard hosts in one process; the ring's connections are in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from model_worlds import Ring, config_with, tiny_model, wait_for

from workers.errors import RequestRefused, WireError
from workers.kv_cache import cache_bytes
from workers.models.model_config import F32_BYTES
from workers.wire import Frame

THREE = [("a", 0, 2), ("b", 2, 4), ("c", 4, 6)]
OTHER_CUTS = [("a", 0, 1), ("b", 1, 5), ("c", 5, 6)]
SLOW = {"pacing": True, "layer_overhead_s": 0.002}
MakeRing = Callable[..., Ring]


@pytest.fixture
def make_ring() -> Iterator[MakeRing]:
    rings: list[Ring] = []

    def make(*args: Any, **kwargs: Any) -> Ring:
        rings.append(Ring(*args, **kwargs))
        return rings[-1]

    yield make
    for ring in rings:
        ring.close()


def refused(ring: Ring, node: str, kind: str, **fields: Any) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        ring.ask(node, kind, **fields)
    return caught.value


@pytest.mark.parametrize(
    "placement",
    [
        THREE,
        [("a", 0, 0), ("b", 0, 3), ("c", 3, 6)],  # a head without layers
        [("a", 4, 6), ("b", 0, 2), ("c", 2, 4)],  # a head with the last layers
        [("a", 0, 3), ("b", 3, 6)],
        [("a", 0, 6)],
    ],
)
def test_a_split_model_generates_what_the_whole_one_does(
    make_ring: MakeRing, placement: list[tuple[str, int, int]]
) -> None:
    ring = make_ring()
    ring.deploy(placement)

    reply = ring.generate("a", "r")
    done = ring.wait_done("r")

    tokens, margins = ring.reference()
    told = ring.tokens("r")
    assert reply.fields == {"prompt_tokens": 5}
    assert [entry["token"] for entry in told] == tokens
    assert [entry["index"] for entry in told] == list(range(20))
    assert [entry["margin"] for entry in told] == pytest.approx(margins, abs=1e-4)
    assert len(set(tokens)) > 3
    assert (done["finish_reason"], done["tokens"]) == ("length", 20)


def test_an_untied_model_is_split_too(make_ring: MakeRing) -> None:
    ring = make_ring(model=tiny_model(tie_word_embeddings=False))
    ring.deploy(THREE)
    ring.generate("a", "r")
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference()[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"model_type": "mistral", "sliding_window": 8},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 16},
        {"model_type": "gpt2"},
    ],
)
def test_every_family_is_split_and_requests_do_not_mix(make_ring: MakeRing, changes: dict[str, Any]) -> None:
    ring = make_ring(model=tiny_model(**changes))
    ring.deploy(THREE, config=config_with(**changes))
    prompts = {"r1": "one", "r2": "another prompt, longer than a window"}
    for request, prompt in prompts.items():
        ring.generate("a", request, prompt=prompt)
    for request, prompt in prompts.items():
        ring.wait_done(request)
        assert [entry["token"] for entry in ring.tokens(request)] == ring.reference(prompt)[0]


def test_requests_share_the_ring_and_do_not_mix(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    prompts = {"r1": "one", "r2": "another prompt", "r3": "x"}
    for request, prompt in prompts.items():
        ring.generate("a", request, prompt=prompt)
    for request, prompt in prompts.items():
        ring.wait_done(request)
        assert [entry["token"] for entry in ring.tokens(request)] == ring.reference(prompt)[0]


def test_many_requests_go_together_and_each_gets_its_own_tokens(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE, ring_nodes=3)
    prompts = {f"r{number}": "a prompt"[: 1 + number % 8] + str(number) for number in range(12)}
    compute, gate = ring.hosts["a"]._compute, threading.Event()
    compute.submit(lambda: gate.wait(10) and None)  # so that all begin before one has ended
    with ThreadPoolExecutor(len(prompts)) as asking:
        for request, prompt in prompts.items():
            asking.submit(ring.generate, "a", request, prompt=prompt)
        wait_for(lambda: len(compute._tasks) >= len(prompts), "all to be asked for")
        gate.set()
    for request, prompt in prompts.items():
        ring.wait_done(request)
        assert [entry["token"] for entry in ring.tokens(request)] == ring.reference(prompt)[0]
    together = [frame for channel in ring.channels for frame in channel.sent if frame.kind == "activations"]
    assert max(frame.fields["together"] for frame in together) == 4  # a third of them: three nodes
    assert 1 < max(len(frame.tensors["places"]) for frame in together) <= 4


def test_requests_that_run_out_of_memory_end_alone(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE, ring_nodes=1)
    budget = ring.hosts["b"]._budget
    budget.limit_bytes = budget.used_bytes + cache_bytes(ring.model.config, layers=2, tokens=128)
    requests = [f"r{number}" for number in range(6)]
    for request in requests:
        ring.generate("a", request, max_tokens=90)
    ends = {request: ring.wait_done(request)["finish_reason"] for request in requests}
    assert set(ends.values()) == {"length", "error"}
    whole = ring.reference(max_tokens=90)[0]
    for request in requests:
        tokens = [entry["token"] for entry in ring.tokens(request)]
        assert tokens == (whole if ends[request] == "length" else whole[: len(tokens)])


def test_the_end_token_stops_a_generation(make_ring: MakeRing) -> None:
    whole = tiny_model()
    ring = make_ring(model=whole)
    second = ring.reference()[0][1]
    ring = make_ring(model=tiny_model(eos_token_id=second))
    fields = {"config": config_with(eos_token_id=second)}
    ring.deploy(THREE, **fields)
    ring.generate("a", "r")
    done = ring.wait_done("r")
    tokens = [entry["token"] for entry in ring.tokens("r")]
    assert (done["finish_reason"], tokens[-1]) == ("stop", second)
    assert len(tokens) <= 2


def test_a_seed_draws_the_same_tokens_however_the_model_is_split(make_ring: MakeRing) -> None:
    drawn = []
    for placement in (THREE, [("a", 0, 6)]):
        ring = make_ring()
        ring.deploy(placement)
        for request, seed in (("r1", 1), ("r2", 1), ("r3", 2)):
            ring.generate("a", request, sampling={"temperature": 1.5, "seed": seed})
            ring.wait_done(request)
        drawn += [[entry["token"] for entry in ring.tokens(request)] for request in ("r1", "r2", "r3")]
    assert drawn[0] == drawn[1] == drawn[3] == drawn[4]
    assert drawn[0] != drawn[2] == drawn[5]
    assert drawn[0] != make_ring().reference()[0]


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


def test_tokens_that_come_fast_are_told_together_but_the_first_one_at_once(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=60)
    ring.wait_done("r")
    told = [fields["tokens"] for _, kind, fields in ring.told if kind == "tokens"]
    assert [token["index"] for tokens in told for token in tokens] == list(range(60))
    assert len(told[0]) == 1
    assert len(told) < 60


def test_no_token_waits_for_the_next_one_to_be_told(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=60)
    wait_for(lambda: len(ring.tokens("r")) >= 3, "three tokens")
    ring.deaf.update("abc")
    wait_for(lambda: not ring.hosts["a"]._deployments.find("d").head._untold, "the last one that was made")


def test_a_stop_text_ends_a_generation_before_it(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    ring.generate("a", "whole")
    ring.wait_done("whole")
    text = "".join(entry["text"] for entry in ring.tokens("whole"))
    stop = text[5:8]
    ring.generate("a", "r", stop=[stop])
    done = ring.wait_done("r")
    assert done["finish_reason"] == "stop"
    assert "".join(entry["text"] for entry in ring.tokens("r")) == text[: text.index(stop)]


def test_probabilities_are_told_where_they_are_asked_for(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    ring.generate("a", "r", sampling={"alternatives": 3}, max_tokens=4)
    ring.wait_done("r")
    for entry in ring.tokens("r"):
        assert entry["top_logprobs"][0] == [entry["token"], entry["token_text"], entry["logprob"]]
        assert len(entry["top_logprobs"]) == 3
        assert entry["margin"] == pytest.approx(entry["logprob"] - entry["top_logprobs"][1][2], abs=1e-4)


def test_without_a_length_an_answer_fills_the_context(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE, context_tokens=24)
    ring.generate("a", "r", max_tokens=None)
    assert ring.wait_done("r")["tokens"] == 24 - 5


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling": {"temperature": 9}},
        {"sampling": "hot"},
        {"stop": "END"},
        {"stop": [""]},
        {"stop": ["x"] * 17},
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_runs(
    make_ring: MakeRing, fields: dict[str, Any]
) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    with pytest.raises(RequestRefused) as caught:
        ring.generate("a", "r", **fields)
    assert caught.value.code == "bad-field"
    assert ring.tokens("r") == []


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


def test_a_late_answer_is_taken_and_one_of_another_pass_is_not(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE, request_timeout_s=0.05)
    ring.deaf.add("b")
    ring.generate("a", "r")
    wait_for(lambda: any(kind == "stalled" for _, kind, _ in ring.told), "the stall")
    rows = np.ones((5, 32), dtype=np.float32)
    for sequence, tokens in ((7, 0), (0, 0), (1, 1), (1, 1)):
        ring.hosts["a"].on_peer_frame("c", activation(sequence=sequence, x=rows.copy()))
        ring.ask("a", "cancel", deployment="d", request="none")  # answered after what came before it
        assert len(ring.tokens("r")) == tokens


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


def test_a_broken_connection_is_made_again(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r1")
    ring.wait_done("r1")
    before = len(ring.channels)
    for channel in ring.channels:
        channel.close()
    ring.generate("a", "r2")
    ring.wait_done("r2")
    assert [entry["token"] for entry in ring.tokens("r2")] == ring.reference()[0]
    assert len(ring.channels) == before + 3


def test_caches_are_freed_when_a_generation_ends(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    for request in ("r1", "r2", "r3"):
        ring.generate("a", request, max_tokens=100)
    for request in ("r1", "r2", "r3"):
        ring.wait_done(request)
    stages = [host._deployments.find("d").stages[1] for host in ring.hosts.values()]
    wait_for(lambda: not any(stage._caches for stage in stages), "the release of all caches")
    wait_for(
        lambda: all(host._deployments.find("d").reserve._used_bytes == 0 for host in ring.hosts.values()),
        "the return of the memory",
    )


def test_a_node_says_what_its_caches_take_and_could_take(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    idle = ring.hosts["b"].caches()
    assert idle["used_bytes"] == {"d": 0}
    ring.generate("a", "r", max_tokens=100)
    wait_for(lambda: ring.tokens("r"), "a token")
    busy = ring.hosts["b"].caches()
    assert busy["used_bytes"]["d"] > 0
    assert busy["used_bytes"]["d"] + busy["free_bytes"] == idle["free_bytes"]


def test_cancelling_ends_a_generation(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=100)
    wait_for(lambda: ring.tokens("r"), "a token")
    ring.ask("a", "cancel", deployment="d", request="r")
    assert ring.wait_done("r")["finish_reason"] == "cancelled"
    ring.ask("a", "cancel", deployment="d", request="r")  # again: nothing happens
    for request in ("s", "t"):
        ring.generate("a", request, max_tokens=100)
    ring.ask("a", "cancel", deployment="d")  # all that still run
    assert [ring.wait_done(request)["finish_reason"] for request in ("s", "t")] == ["cancelled"] * 2


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


def test_text_of_the_tokens_is_the_text_of_the_answer(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=60)
    ring.wait_done("r")
    stage = ring.hosts["a"]._deployments.find("d").stages[1]
    assert stage.tokenizer
    whole = stage.tokenizer.decode(ring.reference(max_tokens=60)[0])
    assert "".join(entry["text"] for entry in ring.tokens("r")) == whole


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


def test_a_stage_out_of_memory_fails_the_request_and_no_other(make_ring: MakeRing) -> None:
    ring = make_ring()
    config = ring.model.config
    enough = 10**7
    stage_bytes = 2 * config.layer_parameters * F32_BYTES + cache_bytes(config, layers=2, tokens=128)
    ring = make_ring()
    ring.hosts["b"]._budget.limit_bytes = stage_bytes
    assert stage_bytes < enough
    ring.deploy(THREE)
    prompt = "p" * 90  # two of these do not fit: a cache of 128 tokens is set aside
    for request in ("r1", "r2"):
        ring.generate("a", request, prompt=prompt, max_tokens=30)
    ends = {request: ring.wait_done(request) for request in ("r1", "r2")}
    reasons = sorted(end["finish_reason"] for end in ends.values())
    assert reasons == ["error", "length"]
    failed = next(end for end in ends.values() if end["finish_reason"] == "error")
    assert failed["detail"].startswith("out-of-memory: b: ")


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


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": "x" * 120, "max_tokens": 9}, "context-exceeded"),
        ({"prompt": "", "max_tokens": 9}, "bad-field"),
        ({"prompt": "x", "max_tokens": 0}, "bad-field"),
        ({"tokens": [], "max_tokens": 1}, "bad-field"),
        ({"tokens": [258], "max_tokens": 1}, "bad-field"),
        ({"tokens": [True], "max_tokens": 1}, "bad-field"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(
    make_ring: MakeRing, fields: dict[str, Any], code: str
) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    assert refused(ring, "a", "generate", deployment="d", request="r", **fields).code == code
    assert ring.told == []


def test_the_same_request_twice_is_refused(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=50)
    with pytest.raises(RequestRefused, match="already running"):
        ring.generate("a", "r")
    ring.wait_done("r")


def test_only_the_head_generates(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.prepare(THREE, 1)
    asked = {"deployment": "d", "request": "r", "prompt": "x", "max_tokens": 1}
    assert refused(ring, "a", "generate", **asked).code == "not-head"  # not committed yet
    ring.commit(THREE, 1)
    assert refused(ring, "b", "generate", **asked).code == "not-head"


def activation(**changes: Any) -> Frame:
    fields = {"deployment": "d", "epoch": 1, "number": 1, "position": 0, "sequence": 1}
    fields.update(changes)
    x = fields.pop("x", np.zeros((1, 32), dtype=np.float32))
    return Frame("activation", fields=fields, tensors={} if x is None else {"x": x})


def activations(rows: Any = ((1, 5, 1), (2, 6, 1)), dtype: type = np.int64, together: int = 4) -> Frame:
    fields = {"deployment": "d", "epoch": 1, "together": together}
    places, x = (
        np.array(rows, dtype=dtype).reshape(len(rows), -1 if len(rows) else 3),
        np.zeros((2, 32), dtype=np.float32),
    )
    return Frame("activations", fields=fields, tensors={"x": x, "places": places})


@pytest.mark.parametrize(
    ("sender", "frame", "complaint"),
    [
        ("c", activation(), "whose rows come from a"),
        ("mallory", activation(), "whose rows come from a"),
        ("mallory", Frame("release", fields={"deployment": "d", "epoch": 1, "number": 1}), "come from a"),
        ("a", activation(x=np.zeros((1, 31), dtype=np.float32)), "x must be"),
        ("a", activation(x=np.zeros((1, 32), dtype=np.float16)), "x must be"),
        ("a", activation(x=np.zeros(32, dtype=np.float32)), "x must be"),
        ("a", activation(x=np.zeros((0, 32), dtype=np.float32)), "0 rows"),
        ("a", activation(x=np.zeros((129, 32), dtype=np.float32)), "129 rows"),
        ("a", activation(position=128), "1 rows at 128"),
        ("a", activation(x=None), "x must be"),
        ("a", activation(position=-1), "position"),
        ("a", activation(sequence="1"), "sequence"),
        ("a", activation(number="r"), "number"),
        ("a", activations(rows=[]), "0 rows, where"),
        ("a", activations(rows=[(1, 5, 1)]), "2 rows of 1"),
        ("a", activations(rows=[(number, 5, 1) for number in range(65)]), "65 rows, where 1 to 64"),
        ("a", activations(rows=[(1, 5, 1), (1, 6, 1)]), "two rows of one request"),
        ("a", activations(rows=[(1, 5), (2, 5)]), "places must be i64"),
        ("a", activations(dtype=np.int32), "places must be i64"),
        ("a", activations(rows=[(1, 5, 1), (2, 128, 1)]), "1 rows at 128"),
        ("a", activations(rows=[(1, 5, 1), (2, -1, 1)]), "must not be below 0"),
        ("a", activations(together=65), "together"),
        ("a", Frame("activations", fields=activations().fields), "places must be"),
        ("mallory", activations(), "whose rows come from a"),
        ("a", Frame("gossip", fields={"deployment": "d", "epoch": 1, "number": 1}), "not taken"),
    ],
)
def test_frames_that_break_the_protocol_close_their_connection_only(
    make_ring: MakeRing, sender: str, frame: Frame, complaint: str
) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    with pytest.raises(WireError, match=complaint):
        ring.hosts["b"].on_peer_frame(sender, frame)
    ring.generate("a", "r")
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference()[0]


@pytest.mark.parametrize("change", [{"epoch": 9}, {"deployment": "other"}])
def test_frames_for_what_is_not_held_are_dropped(make_ring: MakeRing, change: dict[str, Any]) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    ring.hosts["b"].on_peer_frame("a", activation(**change))
    assert ring.hosts["b"].holdings() == ["d/1:2-4"]


def test_rows_that_do_not_follow_fail_the_request_with_the_reason(make_ring: MakeRing) -> None:
    ring = make_ring(**SLOW)
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=50)
    wait_for(lambda: ring.tokens("r"), "a token")
    ring.hosts["b"].on_peer_frame("a", activation(position=100))
    assert ring.wait_done("r")["detail"].startswith("missing-rows: b: ")


def test_broken_rows_end_in_an_error_and_not_in_tokens(make_ring: MakeRing) -> None:
    ring = make_ring()
    name = "model.layers.3.mlp.down_proj.weight"
    ring.parameters[name] = torch.full_like(ring.parameters[name], 3e38)
    ring.deploy(THREE)
    ring.generate("a", "r")
    assert "not finite" in ring.wait_done("r")["detail"]
    assert ring.tokens("r") == []


def test_probing_a_layer_gives_what_the_device_takes(make_ring: MakeRing) -> None:
    ring = make_ring("a", pacing=True, layer_overhead_s=0.02, compute_flops=1e8)
    found = ring.ask("a", "probe.layer", config=config_with()).fields
    flops = 2 * ring.model.config.layer_parameters
    assert found["decode_s"] == pytest.approx(0.02 + flops / 1e8, rel=0.2)
    assert found["prefill_s_per_token"] == pytest.approx(0.02 / 64 + flops / 1e8, rel=0.3)
    assert ring.hosts["a"]._budget.used_bytes == 0


def test_a_host_ends_while_its_device_is_busy(make_ring: MakeRing) -> None:
    ring = make_ring("a", pacing=True, layer_overhead_s=10.0)
    ring.deploy([("a", 0, 6)])
    ring.generate("a", "r")
    ring.close()
    assert not ring.hosts["a"]._compute._thread.is_alive()
