"""Deployments whose process was killed or stopped: what the next process does with them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from inference_world import NODES, World

from orchestrator.errors import Conflict
from orchestrator.inference import messages as m
from orchestrator.inference import run as runs


class KilledWorld(World):
    """A process that can be dropped as a kill does, while the nodes go on."""

    def __init__(self):
        super().__init__()
        self.held = dict.fromkeys(NODES, ())
        self.pool.answers["shard.holding"] = self.holding

    def prepare(self, node, fields, tensors):
        answer = super().prepare(node, fields, tensors)
        head = "head" in fields["roles"]
        layers = range(fields["first_layer"], fields["end_layer"])
        self.held[node] = (fields["model"], list(layers), head)
        return answer

    def holding(self, node, fields, _tensors):
        model, layers, head = self.held[node] or (None, [], False)
        if model != fields["model"]:
            layers, head = [], False
        return self.answer({"layers": layers, "head": head})

    def kill(self):
        """Drop the process: nothing that it still does reaches anybody, and nothing that comes reaches it."""
        for run in list(self.deployments._runs.values()):
            run._ports = replace(run._ports, pool=Dead(), store=Dead(), events=Dead())
            run._calls._pool = Dead()
            run._next_event = None  # its loop ends on what cannot be called
            run._inbox.put(m.Tick(now_s=0.0))
            assert run.wait_ended(10)
        self.pool._listeners.clear()
        self.pool._notified.clear()
        self.pool.asked.clear()
        self.prepared.clear()

    def restart(self):
        self.deployments = self.start_process()
        return self.deployments.resume()

    def decisions(self, deployment):
        return [entry.body for entry in self.store.entries(deployment, type="decision", limit=99)[0]]

    def sent(self):
        return {node: names for node, _, names in self.prepared}


class Dead:
    """What a dead process still has of the world: nothing happens, whatever is called."""

    def __getattr__(self, _name):
        return lambda *_, **__: None


@pytest.fixture
def world():
    made = KilledWorld()
    yield made
    made.deployments.stop(timeout_s=5)


def test_a_deployment_goes_on_where_it_was_and_no_parameters_are_sent_again(world):
    deployment, before = world.deploy(name="tiny")
    world.kill()
    assert world.restart() == [deployment]
    _, shown = world.wait(deployment, ("serving",), epoch=2)
    assert shown["placement"] == before["placement"]
    assert shown["route_epoch"] == 2
    assert set(world.sent()) == {hop[0] for hop in before["placement"]["hops"]}
    assert all(names == [] for names in world.sent().values()), "the nodes hold their layers"
    assert world.deployments.models()["tiny"] == [deployment]
    assert [item["epoch"] for item in shown["placements"]] == [1, 2]
    verdicts = [(item["kind"], item["verdict"]) for item in world.decisions(deployment)]
    assert verdicts[-3:-1] == [("deployment", "resume"), ("resume", "remake")]
    assert world.store.get(deployment).summary["resumes"] == 1


def test_what_the_head_still_answers_is_given_up_before_anything_else(world):
    deployment, before = world.deploy()
    world.complete(deployment)
    world.kill()
    world.restart()
    world.wait(deployment, ("serving",), epoch=2)
    kinds = [(node, kind) for node, kind, fields in world.pool.asked if "request" not in fields]
    cancelled = kinds.index((before["placement"]["head"], "cancel"))
    assert cancelled < min(n for n, (_, kind) in enumerate(kinds) if kind.startswith("shard."))
    assert world.complete(deployment).prompt_tokens == (3,), "new ones are served"


def test_the_old_epochs_are_freed_once_the_new_one_serves(world):
    deployment, before = world.deploy()
    world.kill()
    world.restart()
    world.wait(deployment, ("serving",), epoch=2)
    wanted = {hop[0] for hop in before["placement"]["hops"]}
    assert eventually(lambda: {n for n, kind, _ in world.pool.asked if kind == "shard.retire"} == wanted)
    assert {f["epoch"] for _, kind, f in world.pool.asked if kind == "shard.retire"} == {1}


def test_a_node_that_lost_its_shard_is_sent_it_again_and_the_record_says_so(world):
    deployment, before = world.deploy()
    victim = next(s["node"] for s in before["placement"]["stages"] if s["node"] != "h1")
    world.kill()
    world.held[victim] = ()
    world.restart()
    _, shown = world.wait(deployment, ("serving",), epoch=2)
    assert shown["placement"] == before["placement"]
    assert [node for node, names in world.sent().items() if names] == [victim]
    resumed = next(item for item in world.decisions(deployment) if item["verdict"] == "resume")
    assert f"without their shards: {victim}" in resumed["reason"]


def test_without_one_of_its_nodes_it_is_placed_anew(world, monkeypatch):
    monkeypatch.setattr(runs, "RESUME_PATIENCE_S", 0.2)
    deployment, before = world.deploy()
    victim = next(s["node"] for s in before["placement"]["stages"] if s["node"] != "h1")
    world.kill()
    world.pool.leave(victim)
    world.restart()
    _, shown = world.wait(deployment, ("serving",), epoch=2)
    assert shown["placement"]["head"] == "h1"
    assert victim not in [stage["node"] for stage in shown["placement"]["stages"]]
    resumed = next(item for item in world.decisions(deployment) if item["verdict"] == "resume")
    assert f"not there: {victim}" in resumed["reason"]


def test_it_waits_for_its_nodes_to_attach_again(world):
    deployment, before = world.deploy()
    world.kill()
    for node in NODES:
        world.pool.leave(node)
    world.restart()
    assert eventually(lambda: "waiting for" in (world.store.get(deployment).reason or ""))
    for node in NODES:
        known = world.pool.node(node)
        world.pool.join(node, trusted=known.trusted, profile=known.profile)
    _, shown = world.wait(deployment, ("serving",), epoch=2)
    assert shown["placement"] == before["placement"]


def test_nodes_that_come_back_late_are_taken_when_they_do(world, monkeypatch):
    monkeypatch.setattr(runs, "RESUME_PATIENCE_S", 0.1)
    deployment, _ = world.deploy()
    world.kill()
    for node in NODES:
        world.pool.leave(node)
    world.restart()
    assert eventually(lambda: world.store.get(deployment).state == "degraded"), "not failed"
    for node in NODES:
        known = world.pool.node(node)
        world.pool.join(node, trusted=known.trusted, profile=known.profile)
    assert world.wait(deployment, ("serving",), epoch=2)


def test_an_epoch_that_was_prepared_when_the_process_died_is_not_used_again(world):
    deployment, before = world.deploy()
    record = world.store.get(deployment)
    world.kill()
    world.store.update(deployment, summary={**record.summary, "last_epoch": 5})
    world.restart()
    _, shown = world.wait(deployment, ("serving",), epoch=2)
    assert shown["route_epoch"] == 6
    assert shown["placement"] == before["placement"]


def test_every_epoch_is_kept_before_a_node_hears_of_it(world):
    seen = []
    answer = world.pool.answers["shard.prepare"]

    def prepare(node, fields, tensors):
        seen.append(world.store.get(fields["deployment"]).summary["last_epoch"] >= fields["epoch"])
        return answer(node, fields, tensors)

    world.pool.answers["shard.prepare"] = prepare
    world.deploy()
    assert seen
    assert all(seen)


def test_a_model_that_changed_on_disk_is_sent_anew(world):
    deployment, _ = world.deploy()
    world.kill()
    resolve = world.models.resolve
    world.models.resolve = lambda name, *, progress=None: replace(resolve(name), digest="d2")
    world.restart()
    world.wait(deployment, ("serving",), epoch=2)
    assert all(world.sent().values())
    resumed = next(item for item in world.decisions(deployment) if item["verdict"] == "resume")
    assert "has changed since" in resumed["reason"]


def test_what_the_user_took_down_stays_down_even_if_the_process_died_over_it(world):
    deployment, _ = world.deploy()
    run = world.deployments._runs[deployment]
    run._carry_out = lambda _instructions: None  # killed before it has done what it was told
    world.deployments.undeploy(deployment)
    assert world.store.get(deployment).state == "retiring"
    world.kill()
    assert world.restart() == []
    record = world.store.get(deployment)
    assert (record.state, record.reason) == ("retired", "asked by the operator")
    with pytest.raises(Conflict, match="retired"):
        world.deployments.preview(deployment)


def test_a_stopped_process_lets_go_and_the_next_one_goes_on(world):
    deployment, before = world.deploy()
    completion = world.complete(deployment)
    world.deployments.stop(timeout_s=5)
    record = world.store.get(deployment)
    assert (record.state, record.ended_at) == ("suspended", None)
    (end,) = completion.chunks()
    assert end["finish_reason"] == "error"
    assert end["detail"] == "the orchestrator stops; ask again when it is back"
    assert "shard.retire" not in [kind for _, kind, _ in world.pool.asked]
    world.restart()
    _, shown = world.wait(deployment, ("serving",), epoch=2)
    assert shown["placement"] == before["placement"]


def test_one_that_kills_its_process_while_its_model_is_read_is_given_up(world):
    deployment, _ = world.deploy()
    record = world.store.get(deployment)
    world.kill()
    world.store.update(deployment, summary={**record.summary, "attempts": 3})
    assert world.restart() == []
    assert "3 processes in a row" in world.store.get(deployment).reason
    assert world.store.get(deployment).state == "failed"


def test_one_whose_request_is_no_longer_understood_fails_by_name(world):
    deployment, _ = world.deploy()
    record = world.store.get(deployment)
    world.kill()
    world.store._records[deployment] = replace(record, spec={**record.spec, "speed": "ludicrous"})
    assert world.restart() == []
    assert "speed" in world.store.get(deployment).reason


@pytest.mark.parametrize(
    "summary", [{"placement": {"head": "h1"}}, {"memory_bytes": 5}, {"route_epoch": "x"}]
)
def test_a_record_that_makes_no_sense_fails_and_harms_nothing_else(world, summary):
    sound, _ = world.deploy()
    broken, _ = world.deploy(min_nodes=1)
    world.kill()
    world.store.update(broken, summary=summary)
    assert world.restart() == [sound]
    assert world.store.get(broken).state == "failed"
    assert world.wait(sound, ("serving",), epoch=2)


def test_where_its_nodes_are_gone_for_good_what_was_left_is_ended(world):
    deployment, _ = world.deploy()
    world.kill()
    world.deployments = world.start_process()
    world.deployments.abandon()
    record = world.store.get(deployment)
    assert (record.state, record.reason) == ("interrupted", "the orchestrator stopped before it ended")


def test_shards_of_deployments_that_are_no_more_are_freed_and_the_others_left_alone(world):
    deployment, _ = world.deploy()
    world.pool.records["h2"] = replace(
        world.pool.records["h2"],
        shards=(f"{deployment}/1:0-2+head", "dep-gone/3:0-1", "dep-gone/4:0-1", "strange"),
    )
    freed = world.deployments._sweeper.sweep()
    assert [(one.node, one.deployment, one.epoch) for one in freed] == [("h2", "dep-gone", 4)]
    assert world.pool.asked[-1] == ("h2", "shard.retire", {"deployment": "dep-gone", "epoch": 4})


def test_an_older_epoch_that_a_node_kept_while_it_was_away_is_freed(world):
    deployment, first = world.deploy()
    victim = next(s["node"] for s in first["placement"]["stages"] if s["node"] != "h1")
    known = world.pool.node(victim)
    world.pool.leave(victim)
    world.wait(deployment, ("serving",), epoch=2)
    world.pool.join(victim, trusted=False, profile=known.profile, shards=(f"{deployment}/1:0-2",))
    freed = world.deployments._sweeper.sweep()
    assert [(one.node, one.epoch) for one in freed] == [(victim, 1)]


def eventually(condition, *, within_s=10.0):
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
