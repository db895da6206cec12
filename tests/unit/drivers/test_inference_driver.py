"""The inference driver on doubles: what it sends to nodes, hands to clients, and refuses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from orchestrator_fakes import FakeNorthbound, FakePool, MemoryStore

from orchestrator.clock import SystemClock
from orchestrator.core.model import Measurement, PathMetrics, network
from orchestrator.core.partition import transformer_graph
from orchestrator.errors import (
    Conflict,
    ImpossibleRequest,
    InvalidRequest,
    Unavailable,
    WorkerRefused,
)
from orchestrator.events import EventLog
from orchestrator.inference import serving
from orchestrator.inference.asking import Asked
from orchestrator.inference.driver import SplitDeployments
from orchestrator.inference.request import DeploymentRequest
from orchestrator.ports import Answer, Model, Ports
from workers.models.config import parse_config

NODES = ("h1", "h2", "h3", "h4")


CONFIG = parse_config({
    "model_type": "llama", "vocab_size": 5, "hidden_size": 2, "intermediate_size": 4, "num_hidden_layers": 4,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "max_position_embeddings": 64,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "eos_token_id": 4,
})  # fmt: skip


class FourLayers:
    """A model of four layers of 400 bytes, whose head takes 40."""

    def __init__(self):
        self.checked = CONFIG

    def check_split(self, _name):
        return self.checked

    def resolve(self, name, *, progress=None):
        return Model(
            name=name, folder=Path("/x"), config={"hidden_size": 4}, tokenizer_json="{}",
            parameter_bytes=1640, digest="d1", layers=4, context_tokens=64,
        )  # fmt: skip

    def graph(self, model, *, wire):
        return transformer_graph(
            name=model.name, digest="d1", layer_parameters=(100,) * 4, head_parameters=10,
            vocabulary=5, hidden=2, kv_width=2,
        )  # fmt: skip

    def shard(self, _model, *, first_layer, end_layer, head):
        layers = {f"layer.{n}": np.zeros(100, dtype=np.float32) for n in range(first_layer, end_layer)}
        return layers | ({"head": np.zeros(10, dtype=np.float32)} if head else {})


def measured(value):
    return Measurement(value=value, samples=9, age_s=0.1, source="probe")


def path(src, dst):
    return PathMetrics(
        src=src, dst=dst, delay_s=measured(0.01), loss_ratio=measured(0.0),
        capacity_bps=measured(1e8), available_bps=measured(1e8),
    )  # fmt: skip


class World:
    def __init__(self):
        self.pool = FakePool()
        self.store = MemoryStore()
        self.events = EventLog(store=self.store, clock=SystemClock())
        self.prepared = []
        self.refusals = {}
        self.lock = threading.Lock()
        everyone = ("orch", *NODES)
        numbers = iter(range(1, 1000))
        for kind in ("commit", "abort", "retire"):
            self.pool.answers[f"shard.{kind}"] = lambda _node, fields, _t: self.answer(
                {"epoch": fields["epoch"]}
            )
        self.pool.answers["shard.prepare"] = self.prepare
        self.pool.answers["probe.layer"] = lambda *_: self.answer(
            {"decode_s": 0.001, "prefill_s_per_token": 0.0005}
        )
        self.pool.answers["generate"] = self.generate
        self.pool.answers["cancel"] = lambda *_: self.answer({})
        self.models = FourLayers()
        self.network = network(0.0, [path(a, b) for a in everyone for b in everyone if a != b])
        self.ids = lambda kind: f"{kind}-{next(numbers)}"
        self.deployments = self.start_process()
        for node in NODES:
            self.pool.join(node, trusted=node == "h1", profile={
                "compute_flops": 1e9, "layer_overhead_s": 0.0, "memory_bytes": 1500,
            })  # fmt: skip

    def start_process(self):
        return SplitDeployments(
            Ports(
                pool=self.pool,
                northbound=FakeNorthbound(self.network),
                store=self.store,
                models=self.models,
                events=self.events,
                clock=SystemClock(),
                ids=self.ids,
            )
        )

    def prepare(self, node, fields, tensors):
        with self.lock:
            self.prepared.append((node, fields, sorted(tensors)))
        if node in self.refusals:
            raise self.refusals[node]
        return self.answer({"ready": True, "digest": "x", "memory_bytes": 500})

    def generate(self, _node, fields, _tensors):
        if len(fields["prompt"]) > 20:
            raise WorkerRefused("node h1 refused generate: exceeds the context", code="context-exceeded")
        return self.answer({"prompt_tokens": len(fields["prompt"])})

    @staticmethod
    def answer(fields):
        return Answer(fields=fields, tensors={}, sent_bytes=0, received_bytes=0)

    def deploy(self, **values):
        request = {"model": "m", "min_nodes": 3, "context_tokens": 16, "monitor_interval_s": 0.1, **values}
        record = self.deployments.deploy(DeploymentRequest(**request))
        return self.wait(record.id, ("serving", "failed"))

    def wait(self, deployment, states, epoch=1, timeout_s=10.0):
        stop = threading.Timer(timeout_s, self.events.close)
        stop.start()
        try:
            for entry in self.events.follow(deployment, quiet_s=0.05):
                if entry is None or entry.type != "state" or entry.body["state"] not in states:
                    continue
                if entry.body["state"] in ("failed", "retired") or (entry.body["route_epoch"] or 0) >= epoch:
                    return deployment, entry.body
        finally:
            stop.cancel()
        raise AssertionError(f"{deployment} is {self.store.get(deployment).state}")

    def complete(self, deployment, *prompts, prompt="abc"):
        asked = [Asked(prompt=each, max_tokens=2) for each in prompts or (prompt,)]
        return self.deployments.complete(deployment, asked)

    def token(self, deployment, request, index=0, **more):
        told = {
            "request": request, "index": index, "token": 7, "text": "a",
            "epoch": 1, "elapsed_s": 0.01, "replayed": 0, "margin": 1.0, **more,
        }  # fmt: skip
        self.pool.notify("tokens", "h1", {"deployment": deployment, "tokens": [told]})


@pytest.fixture
def world():
    made = World()
    yield made
    made.deployments.stop(timeout_s=5)


def test_each_node_gets_its_layers_and_neighbours_and_only_the_head_the_tokenizer(world):
    _, shown = world.deploy()
    assert shown["state"] == "serving"
    by_node = {node: (fields, names) for node, fields, names in world.prepared}
    ring = shown["placement"]["hops"]
    for src, dst in ring:
        fields, _ = by_node[src]
        assert fields["next"]["node"] == dst
        assert fields["next"]["address"] == world.pool.node(dst).address
        assert by_node[dst][0]["previous"] == src
    layers = [name for _, names in by_node.values() for name in names if name.startswith("layer")]
    assert sorted(layers) == [f"layer.{n}" for n in range(4)]
    assert [node for node, (fields, _) in by_node.items() if "tokenizer_json" in fields] == ["h1"]
    assert "head" in by_node["h1"][1]


def test_nodes_are_told_the_limit_of_keys_and_values(world):
    world.deploy(kv_cache_bytes=10**6)
    assert {fields["kv_cache_bytes"] for _, fields, _ in world.prepared} == {10**6}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            {"context_tokens": 40, "kv_cache_bytes": 40 * 64 - 1},
            "kv_cache_bytes is 2559, but one sequence of 40 tokens takes 2560 bytes over all layers: "
            "raise it to that at least, or shorten context_tokens to 39 at most",
        ),
        (
            {"context_tokens": 16, "kv_cache_bytes": 1},
            "kv_cache_bytes is 1, but one sequence of 16 tokens takes 1024 bytes over all layers: "
            "raise it to that at least",
        ),
        ({"context_tokens": None, "kv_cache_bytes": 64**2 - 1}, "one sequence of 64 tokens takes 4096 bytes"),
        ({"context_tokens": 1000, "kv_cache_bytes": 64**2 - 1}, "one sequence of 64 tokens takes 4096 bytes"),
    ],
)
def test_a_limit_in_which_no_sequence_fits_is_refused_before_anything_is_deployed(world, asked, reason):
    with pytest.raises(ImpossibleRequest) as refused:
        world.deploy(**asked)
    assert reason in str(refused.value)
    assert refused.value.field == "kv_cache_bytes"
    assert world.store.records(kind="deployment", limit=9, offset=0) == ([], 0)
    assert not world.prepared


def test_a_model_that_grew_since_it_was_asked_for_fails_with_what_its_sequence_takes(world):
    world.models.checked = replace(CONFIG, layers=1)
    _, shown = world.deploy(kv_cache_bytes=16 * 16)
    assert shown["state"] == "failed"
    assert "kv_cache_bytes is 256, but one sequence of 16 tokens takes 1024 bytes" in shown["reason"]
    assert not world.prepared


def test_a_node_that_refuses_its_shard_is_done_without_and_the_refusal_recorded(world):
    deployment, first = world.deploy()
    world.deployments.undeploy(deployment)
    world.wait(deployment, ("retired",))
    victim = next(s["node"] for s in first["placement"]["stages"] if s["node"] != "h1")
    world.refusals[victim] = WorkerRefused(f"node {victim} refused: memory", code="out-of-memory")
    _, second = world.deploy()
    assert second["state"] == "serving"
    assert victim not in [stage["node"] for stage in second["placement"]["stages"]]


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


SPLIT = {"compute_s": 0.1, "queue_s": 0.0, "wire_s": 0.0, "emulated": False, "nodes": [["h1", 0.1, 0.0]]}


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


def test_a_lost_stage_is_replaced_under_a_new_route_epoch(world):
    deployment, first = world.deploy()
    victim = next(s["node"] for s in first["placement"]["stages"] if s["node"] != "h1")
    world.pool.leave(victim)
    _, second = world.wait(deployment, ("serving",), epoch=2)
    assert victim not in [stage["node"] for stage in second["placement"]["stages"]]
    assert [placement["epoch"] for placement in second["placements"]] == [1, second["route_epoch"]]


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


def test_what_cannot_be_placed_is_refused_or_fails_with_the_constraint(world):
    with pytest.raises(Conflict, match="min_nodes is 5"):
        world.deploy(min_nodes=5)
    world.pool.leave("h1")
    with pytest.raises(Conflict, match="trusted"):
        world.deploy()


def test_a_model_too_large_for_the_nodes_fails_naming_the_figures(world):
    for node in NODES:
        world.pool.join(node, trusted=node == "h1", profile={
            "compute_flops": 1e9, "layer_overhead_s": 0.0, "memory_bytes": 300,
        })  # fmt: skip
    _, shown = world.deploy()
    assert shown["state"] == "failed"
    assert "bytes" in shown["reason"]


def test_memory_that_another_deployment_holds_is_not_given_twice(world):
    first, _ = world.deploy()
    states = {state.name: state for state in world.deployments._states(FourLayers().resolve("m"), "other")}
    used = [hop[0] for hop in world.deployments.describe(first)["placement"]["hops"]]
    assert {name for name, state in states.items() if state.reserved_bytes == 500} == set(used)


def test_a_preview_changes_nothing_and_an_ended_deployment_refuses(world):
    deployment, shown = world.deploy()
    sent = len(world.prepared)
    preview = world.deployments.preview(deployment)
    assert preview["current"] == shown["placement"]
    assert any(item["chosen"] for item in preview["alternatives"])
    assert len(world.prepared) == sent
    world.deployments.undeploy(deployment)
    world.wait(deployment, ("retired",))
    assert deployment not in world.deployments.models()
    while deployment in world.deployments.live():
        assert world.store.get(deployment).state == "retired"
    with pytest.raises(Conflict, match="retired"):
        world.deployments.preview(deployment)
    assert {kind for _, kind, _ in world.pool.asked[-4:]} <= {"shard.retire", "shard.abort"}


def test_a_head_that_does_not_answer_is_unavailable(world):
    deployment, _ = world.deploy()
    world.pool.answers["generate"] = lambda *_: (_ for _ in ()).throw(
        WorkerRefused("node h1 refused generate: busy", code="busy")
    )
    with pytest.raises(Unavailable, match="busy"):
        world.complete(deployment)


def test_nodes_are_told_how_to_hold_and_to_send(world):
    probed = []

    def probe(_node, fields, _tensors):
        probed.append(fields["compute"])
        return world.answer({"decode_s": 0.001, "prefill_s_per_token": 0.0005})

    world.pool.answers["probe.layer"] = probe
    for compute, model in (("bf16", "d1:bf16"), ("fp32", "d1")):
        world.prepared.clear()
        world.deploy(compute=compute, wire="int8")
        told = {(fields["model"], fields["compute"], fields["wire"]) for _, fields, _ in world.prepared}
        assert told == {(model, compute, "int8")}
    assert probed == ["bf16"] * len(NODES) + ["fp32"] * len(NODES)


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
