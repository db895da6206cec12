"""What the inference driver hands to clients, and which answers and words of nodes it refuses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from inference_world import World

from orchestrator.errors import (
    InvalidRequest,
    Unavailable,
    WorkerRefused,
)
from orchestrator.inference import serving

SPLIT = {"compute_s": 0.1, "queue_s": 0.0, "wire_s": 0.0, "emulated": False, "nodes": [["h1", 0.1, 0.0]]}


@pytest.fixture
def world():
    made = World()
    yield made
    made.deployments.stop(timeout_s=5)


def test_tokens_of_a_request_reach_its_reader_and_are_counted(world):
    deployment, _ = world.deploy()
    generation = world.complete(deployment)
    world.token(deployment, generation.request)
    world.token(deployment, generation.request, 1, text="b")
    world.token(deployment, "cmpl-of-nobody")
    end = {"deployment": deployment, "request": generation.request, "finish_reason": "length", "detail": None}
    world.pool.notify("done", "h1", end)
    chunks = list(generation.chunks())
    assert [chunk.get("text") for chunk in chunks] == ["a", "b", None]
    assert chunks[-1] == {"choice": 0, "finish_reason": "length", "detail": None}
    assert generation.prompt_tokens == (3,)
    assert world.deployments.tokens_generated() == 2


@pytest.mark.parametrize(
    "more",
    [
        {"index": -1},
        {"token": None},
        {"text": 5},
        {"elapsed_s": float("nan")},
        {"epoch": True},
        {**SPLIT, "wire_s": -1.0},
        {**SPLIT, "queue_s": None},
        {**SPLIT, "emulated": "no"},
        {**SPLIT, "nodes": None},
        {**SPLIT, "nodes": [["h1", 0.1]]},
        {**SPLIT, "nodes": [["", 0.1, 0.1]]},
        {**SPLIT, "nodes": [["h1", float("inf"), 0.1]]},
        {**SPLIT, "nodes": [["h1", 0.1, 0.1]] * 66},
    ],
)
def test_a_token_that_makes_no_sense_is_dropped(world, more):
    deployment, _ = world.deploy()
    generation = world.complete(deployment)
    world.token(deployment, generation.request, **more)
    assert world.deployments.tokens_generated() == 0


def test_where_a_tokens_time_went_is_handed_on(world):
    deployment, _ = world.deploy()
    generation = world.complete(deployment)
    world.token(deployment, generation.request, **SPLIT)
    chunk = next(generation.chunks())
    assert {name: chunk[name] for name in SPLIT} == SPLIT


@pytest.mark.parametrize("tokens", [None, {"index": 0}, ["a"]])
def test_tokens_that_are_no_list_of_maps_are_dropped(world, tokens):
    deployment, _ = world.deploy()
    world.complete(deployment)
    world.pool.notify("tokens", "h1", {"deployment": deployment, "tokens": tokens})
    assert world.deployments.tokens_generated() == 0


def test_a_node_that_is_not_the_head_cannot_speak_for_a_request(world):
    deployment, _ = world.deploy()
    generation = world.complete(deployment)
    end = {"deployment": deployment, "request": generation.request, "finish_reason": "stop"}
    world.pool.notify("done", "h2", end)
    world.token(deployment, generation.request)
    world.pool.notify("done", "h1", end)
    assert [chunk.get("finish_reason") for chunk in generation.chunks()] == [None, "stop"]


def test_several_answers_are_read_as_they_come_each_by_its_place(world):
    deployment, _ = world.deploy()
    completion = world.complete(deployment, "abc", "ab")
    first, second = (f"cmpl-{int(completion.request.split('-')[1]) + more}" for more in (0, 1))
    world.token(deployment, second, text="x")
    world.token(deployment, first, text="y")
    for request, reason in ((first, "stop"), (second, "length")):
        end = {"deployment": deployment, "request": request, "finish_reason": reason}
        world.pool.notify("done", "h1", end)
    told = [(chunk["choice"], chunk.get("text") or chunk["finish_reason"]) for chunk in completion.chunks()]
    assert told == [(1, "x"), (0, "y"), (0, "stop"), (1, "length")]
    assert completion.prompt_tokens == (3, 2)


def test_where_one_answer_is_refused_none_goes_on(world):
    deployment, _ = world.deploy()
    with pytest.raises(InvalidRequest, match="context"):
        world.complete(deployment, "abc", "x" * 30)
    assert [kind for _, kind, _ in world.pool.asked].count("cancel") == 1


@pytest.mark.parametrize(
    "more",
    [
        {"logprob": float("nan"), "token_text": "a", "top_logprobs": []},
        {"logprob": -0.1, "token_text": "a"},
        {"logprob": -0.1, "token_text": "a", "top_logprobs": [[1, "a"]]},
        {"logprob": -0.1, "token_text": 5, "top_logprobs": []},
    ],
)
def test_a_probability_that_makes_no_sense_is_dropped(world, more):
    deployment, _ = world.deploy()
    completion = world.complete(deployment)
    world.token(deployment, completion.request, **more)
    assert world.deployments.tokens_generated() == 0


def test_replicas_share_a_name_and_a_request_goes_to_the_idle_one(world):
    first, _ = world.deploy(name="tiny", min_nodes=1)
    second, _ = world.deploy(name="tiny", min_nodes=1)
    assert world.deployments.models()["tiny"] == sorted([first, second])
    asked = [world.complete("tiny") for _ in range(4)]
    heads = [fields["deployment"] for _, kind, fields in world.pool.asked if kind == "generate"]
    assert sorted(heads) == sorted([first, second] * 2)
    assert len({completion.request for completion in asked}) == 4


def test_a_replica_that_refuses_is_passed_over(world):
    first, _ = world.deploy(name="tiny", min_nodes=1)
    world.deploy(name="tiny", min_nodes=1)
    answer = world.pool.answers["generate"]

    def one_is_busy(node, fields, tensors):
        if fields["deployment"] == first:
            raise WorkerRefused("node h1 refused generate: busy", code="busy")
        return answer(node, fields, tensors)

    world.pool.answers["generate"] = one_is_busy
    assert world.complete("tiny").prompt_tokens == (3,)
    with pytest.raises(Unavailable, match="busy"):
        world.complete(first)


def test_a_lost_head_ends_its_requests_with_the_reason(world):
    deployment, _ = world.deploy()
    generation = world.complete(deployment)
    world.pool.leave("h1")
    (end,) = generation.chunks()
    assert end["finish_reason"] == "error"
    assert "h1" in end["detail"]


def test_a_prompt_that_does_not_fit_is_the_clients_fault(world):
    deployment, _ = world.deploy()
    with pytest.raises(InvalidRequest, match="context") as refusal:
        world.complete(deployment, prompt="x" * 30)
    assert refusal.value.field == "prompt"


def test_a_head_that_does_not_answer_is_unavailable(world):
    deployment, _ = world.deploy()
    world.pool.answers["generate"] = lambda *_: (_ for _ in ()).throw(
        WorkerRefused("node h1 refused generate: busy", code="busy")
    )
    with pytest.raises(Unavailable, match="busy"):
        world.complete(deployment)


def test_of_many_requests_at_once_those_beyond_what_a_head_takes_wait_their_turn(world):
    deployment, _ = world.deploy()
    asked, most, now = threading.Semaphore(0), [0], [0]
    go_on = threading.Event()
    answer = world.pool.answers["generate"]

    def slow(node, fields, tensors):
        with world.lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        asked.release()
        assert go_on.wait(10)
        with world.lock:
            now[0] -= 1
        return answer(node, fields, tensors)

    world.pool.answers["generate"] = slow
    with ThreadPoolExecutor(max_workers=100) as executor:
        completions = [executor.submit(world.complete, deployment) for _ in range(100)]
        for _ in range(32):
            assert asked.acquire(timeout=10)
        go_on.set()
        assert len({completion.result(10).request for completion in completions}) == 100
    assert most[0] == 32


def test_a_turn_that_does_not_come_is_unavailable(world, monkeypatch):
    monkeypatch.setattr(serving, "_ASKED_AT_ONCE", 1)
    monkeypatch.setattr(serving, "_GENERATE_TIMEOUT_S", 0.05)
    deployment, _ = world.deploy()
    begun, go_on = threading.Event(), threading.Event()

    def stuck(*_):
        begun.set()
        assert go_on.wait(10)
        return world.answer({"prompt_tokens": 3})

    world.pool.answers["generate"] = stuck
    with ThreadPoolExecutor(max_workers=1) as executor:
        first = executor.submit(world.complete, deployment)
        assert begun.wait(10)
        with pytest.raises(Unavailable, match="ask again later"):
            world.complete(deployment)
        go_on.set()
        assert first.result(10).prompt_tokens == (3,)
