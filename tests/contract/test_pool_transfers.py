"""The pool notes what its bulk transfers achieved, and who serves activations."""

import time

import numpy as np
import pytest
from orchestrator_worlds import Heard, LiveWorld, answer

from orchestrator.adapters.goodput_reports import Transfers
from orchestrator.clock import SystemClock


class Controller:
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def post(self, _path, body):
        self.told += body["transfers"]
        return {}


@pytest.fixture
def transfers():
    return Transfers(own_address="127.0.0.9", clock=SystemClock())


@pytest.fixture
def world(tmp_path, transfers):
    made = LiveWorld(tmp_path, transfers=transfers)
    made.join("h1")
    yield made
    made.close()


def told_of(transfers):
    controller = Controller()
    transfers.tell(controller)
    return [(item["src"], item["dst"], item["bytes"], item["seconds"]) for item in controller.told]


def test_what_the_node_received_is_noted_and_kept_from_the_caller(world, transfers):
    received = {"bytes": 3000, "seconds": 0.05, "ago_s": 0.0}

    def take(_node, fields, _tensors):
        time.sleep(0.1)  # the transfer cannot have taken longer than the request
        return answer({"version": fields["version"], "received": received})

    world.answers["train.update"] = take
    tensors = {"x": np.zeros(4000, dtype=np.uint8)}
    found = world.pool.request("h1", "bulk", "train.update", {"version": 3}, tensors, timeout_s=10)
    assert found.fields == {"version": 3}
    assert told_of(transfers) == [("127.0.0.9", "198.18.1.1", 3000, 0.05)]


def test_a_node_that_claims_more_than_it_was_sent_is_not_believed(world, transfers):
    received = {"bytes": 5000, "seconds": 0.05, "ago_s": 0.0}
    world.answers["train.update"] = lambda *_: answer({"received": received})
    tensors = {"x": np.zeros(4000, dtype=np.uint8)}
    world.pool.request("h1", "bulk", "train.update", {}, tensors, timeout_s=10)
    assert told_of(transfers) == []


def test_who_holds_shards_serves_at_its_data_port(world):
    assert world.pool.serving_ends() == ()
    heard = Heard()
    world.pool.on_notification("heartbeat", heard)
    beat = {"sent_at": 1.0, "cpu_utilisation": 0.1, "rss_bytes": 1, "busy": None}
    world.notify("heartbeat", "h1", {**beat, "shards": ["d1/1 0:4"]})
    heard.wait_for(1)
    record = world.pool.node("h1")
    assert world.pool.serving_ends() == ((record.address, record.port),)
    world.notify("heartbeat", "h1", {**beat, "shards": []})
    heard.wait_for(2)
    assert world.pool.serving_ends() == ()
