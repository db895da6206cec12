"""The orchestrator killed with -9 in the middle of an answer: the deployment goes on by itself."""

from __future__ import annotations

import os
import signal

import openai
import pytest
from loopback_orchestrator import system_of

from orchestrator.client import ApiError, Client
from workers.models import generate

FLOPS = {"h1": 4e9, "h2": 4e9, "h3": 2e9}
PROMPT = "The network measures "
DEPLOYMENT = {
    "name": "tiny",
    "min_nodes": 3,
    "monitor_interval_s": 0.3,
    "request_timeout_s": 5,
    "thresholds": {"latency_s": 5.0, "available_bps": 0, "cool_down_s": 0, "utilisation": 1.0},
}
LONG = {"model": "tiny", "prompt": PROMPT, "max_tokens": 900, "stream": True}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    with system_of(tmp_path_factory.mktemp("resume-serving"), FLOPS, trusted=("h1", "h2")) as made:
        yield made


@pytest.fixture(scope="module")
def deployment(system):
    made = system.post("/api/v1/deployments", {**DEPLOYMENT, "model": system.model})
    shown = system.wait_state(f"/api/v1/deployments/{made['id']}", ("serving", "failed"))
    assert shown["state"] == "serving", shown["reason"]
    return shown


def holdings(system):
    return [item for node in system.get("/api/v1/nodes")["items"] for item in node["shards"]]


def served_again(system, deployment, *, epoch):
    """Wait until the deployment serves under a later epoch, and nothing of the older ones is left."""
    address = f"/api/v1/deployments/{deployment['id']}"
    shown = system.wait(
        lambda: (
            (now := system.get(address))["state"] == "serving" and (now["route_epoch"] or 0) > epoch and now
        ),
        what="the deployment serves again",
    )
    wanted = f"{deployment['id']}/{shown['route_epoch']}:"
    system.wait(
        lambda: len(holdings(system)) == 3 and all(item.startswith(wanted) for item in holdings(system)),
        what="the nodes hold the new epoch only",
    )
    answer = system.post("/v1/completions", {"model": "tiny", "prompt": PROMPT, "max_tokens": 24})
    assert answer["utopia"]["tokens"] == generate(system.model, PROMPT, 24)[0]
    return shown


def test_an_answer_that_is_cut_ends_with_an_error_and_new_ones_are_served_unasked(system, deployment):
    answer = Client(system.url).stream("/v1/completions", LONG)
    for _ in range(5):
        next(answer)
    with openai.DefaultHttpxClient(trust_env=False, timeout=20) as http:
        client = openai.OpenAI(base_url=f"{system.url}/v1", api_key="none", http_client=http, max_retries=0)
        other = client.completions.create(**LONG)
        next(iter(other))
        system.kill_orchestrator()
        with pytest.raises(ApiError, match=r"broke off.*ask again"):
            list(answer)
        with pytest.raises(openai.APIConnectionError):
            list(other)
    system.start_orchestrator()
    shown = served_again(system, deployment, epoch=deployment["route_epoch"])
    assert shown["placement"] == deployment["placement"]
    assert shown["resumes"] == 1
    decisions = system.get(f"/api/v1/deployments/{deployment['id']}/decisions")["items"]
    assert {"resume", "remake"} <= {item["verdict"] for item in decisions}
    assert shown["running_requests"] == 0


def test_a_node_that_lost_its_shard_with_its_process_gets_it_again(system, deployment):
    before = system.get(f"/api/v1/deployments/{deployment['id']}")
    victim = next(
        s["node"] for s in before["placement"]["stages"] if s["node"] != before["placement"]["head"]
    )
    system.kill_orchestrator()
    os.kill(system.workers[victim], signal.SIGKILL)
    system.start_orchestrator()
    system.restart_worker(victim)
    shown = served_again(system, deployment, epoch=before["route_epoch"])
    assert shown["placement"] == before["placement"]
    decisions = system.get(f"/api/v1/deployments/{deployment['id']}/decisions")["items"]
    resumed = [item["reason"] for item in decisions if item["verdict"] == "resume"]
    assert f"without their shards: {victim}" in resumed[-1]


def test_a_stopped_orchestrator_lets_go_and_the_next_one_goes_on(system, deployment):
    before = system.get(f"/api/v1/deployments/{deployment['id']}")
    answer = Client(system.url).stream("/v1/completions", LONG)
    next(answer)
    assert system.stop("orchestrator") == 0
    assert "ask again when it is back" in list(answer)[-1]["error"]["message"]
    system.start_orchestrator()
    served_again(system, deployment, epoch=before["route_epoch"])


def test_what_the_user_took_down_stays_down(system, deployment):
    address = f"/api/v1/deployments/{deployment['id']}"
    system.delete(address)
    system.kill_orchestrator()
    system.start_orchestrator()
    system.wait(lambda: len(system.alive()) == 3, what="the workers are back")
    assert system.get(address)["state"] == "retired"
    system.wait(lambda: holdings(system) == [], what="the nodes hold nothing any more")
