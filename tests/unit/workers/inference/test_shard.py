"""Split inference over shard hosts in one process; the ring's connections are in memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from model_worlds import SLOW, THREE, MakeRing, config_with, refused, tiny_model, wait_for

from workers.errors import RequestRefused


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
    wait_for(
        lambda: not ring.hosts["a"]._deployments.find("d").head._telling._untold, "the last one that was made"
    )


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


def test_text_of_the_tokens_is_the_text_of_the_answer(make_ring: MakeRing) -> None:
    ring = make_ring()
    ring.deploy(THREE)
    ring.generate("a", "r", max_tokens=60)
    ring.wait_done("r")
    stage = ring.hosts["a"]._deployments.find("d").stages[1]
    assert stage.tokenizer
    whole = stage.tokenizer.decode(ring.reference(max_tokens=60)[0])
    assert "".join(entry["text"] for entry in ring.tokens("r")) == whole


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
