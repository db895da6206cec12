"""The inference driver on doubles: what it sends to nodes, where it places, and what it refuses to deploy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from inference_world import CONFIG, NODES, FourLayers, World

from orchestrator.errors import (
    Conflict,
    ImpossibleRequest,
    WorkerRefused,
)


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


def test_a_lost_stage_is_replaced_under_a_new_route_epoch(world):
    deployment, first = world.deploy()
    victim = next(s["node"] for s in first["placement"]["stages"] if s["node"] != "h1")
    world.pool.leave(victim)
    _, second = world.wait(deployment, ("serving",), epoch=2)
    assert victim not in [stage["node"] for stage in second["placement"]["stages"]]
    assert [placement["epoch"] for placement in second["placements"]] == [1, second["route_epoch"]]


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
