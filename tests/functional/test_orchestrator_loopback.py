"""Orchestrator and workers as real processes: enrol, fine-tune with elimination, serve split, fail over."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import openai
import pytest
from loopback_orchestrator import system_of

from workers.models import generate
from workers.models.loader import load

FLOPS = {"h1": 4e9, "h2": 4e9, "h3": 2e9, "h4": 5e8}
TRAINING = {"local_steps": 2, "batch_size": 4, "sequence_length": 32, "learning_rate": 3e-3}
WEIGHTS = {"compute": 1.0, "bandwidth": 0.0, "delay": 0.0, "loss": 0.0, "time": 0.0}
JOB = {
    "epochs": 3,
    "training": TRAINING,
    "weights": WEIGHTS,
    "data_bytes": 40_000,
    "round_timeout_s": 30,
}
PROMPT = "The network measures "


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    with system_of(tmp_path_factory.mktemp("loopback"), FLOPS, trusted=("h1", "h2")) as made:
        made.wait(
            lambda: made.get("/api/v1/network")["nodes"][0]["to_orchestrator"]["delay_s"]["value"],
            what="paths are measured",
        )
        yield made


@pytest.fixture(scope="module")
def job(system):
    """Run one job to its end; answers what it shows."""
    made = system.post("/api/v1/jobs", {**JOB, "model": system.model, "policy": "eliminate"})
    refused = system.session.post(system.url + "/api/v1/jobs", json=JOB, timeout=10)
    assert refused.status_code == 409, "a second job runs beside the first"
    assert made["id"] in refused.json()["detail"]
    return system.wait_state(f"/api/v1/jobs/{made['id']}", ("completed", "failed"))


def test_fine_tuning_eliminates_one_node_per_epoch_and_lowers_the_loss(system, job):
    assert job["state"] == "completed", (job["reason"], system.log("orchestrator"))
    assert [len(epoch["active"]) for epoch in job["epochs"]] == [4, 3, 2]
    assert [len(epoch["eliminated"]) for epoch in job["epochs"]] == [1, 1, 0]
    assert job["epochs"][0]["eliminated"] == ["h4"], "the weakest node goes first"
    summary = job["summary"]
    assert summary["final_loss"] < summary["start_loss"] - 0.2
    assert [epoch["loss"] for epoch in job["epochs"]][-1] == summary["final_loss"]
    assert sorted(summary["settled"]) == sorted(FLOPS), "eliminated nodes hold the final model, too"
    assert summary["bytes"]["sync_sent_bytes"] > 0
    assert summary["completion_s"] > 0


def test_the_job_explains_whom_it_eliminated(system, job):
    decisions = system.get(f"/api/v1/jobs/{job['id']}/decisions")["items"]
    first = next(item for item in decisions if item["kind"] == "eliminate")
    assert first["verdict"] == "eliminate h4"
    assert {score["node"] for score in first["scores"]} == set(FLOPS)
    assert first["scores"][-1]["node"] == "h4"
    assert first["scores"][0]["criteria"]["delay"]["value"] == pytest.approx(0.001)


def test_the_events_of_a_finished_job_are_streamed_and_end(system, job):
    url = f"{system.url}/api/v1/jobs/{job['id']}/events"
    with system.session.get(url, stream=True, timeout=10) as answer:
        kinds = [line[7:] for line in answer.iter_lines(decode_unicode=True) if line.startswith("event: ")]
    assert kinds.count("epoch") >= 3
    assert kinds[-1] == "state"


def test_the_tuned_model_is_a_folder_that_loads(job):
    assert load(job["summary"]["model_folder"]).config.layers == 6


def test_a_cancelled_job_ends_and_leaves_the_nodes_free(system, job):
    body = {**JOB, "epochs": 200, "policy": "all", "model": system.model}
    made = system.post("/api/v1/jobs", body)
    address = f"/api/v1/jobs/{made['id']}"
    system.wait(lambda: system.get(address)["epochs"], what="the first epoch is done")
    system.delete(address)
    ended = system.wait_state(address, ("cancelled", "failed", "completed"))
    assert (ended["state"], ended["reason"]) == ("cancelled", "cancelled by the user")


def completion(system, deployment, max_tokens, **more):
    body = {"model": deployment, "prompt": PROMPT, "max_tokens": max_tokens, **more}
    return system.post("/v1/completions", body)


@pytest.fixture(scope="module")
def deployment(system, job):
    body = {
        "model": f"job:{job['id']}",
        "min_nodes": 3,
        "monitor_interval_s": 0.3,
        "request_timeout_s": 2,
        "thresholds": {"latency_s": 5.0, "available_bps": 0, "cool_down_s": 0},
    }
    made = system.post("/api/v1/deployments", body)
    shown = system.wait_state(f"/api/v1/deployments/{made['id']}", ("serving", "failed"))
    assert shown["state"] == "serving", (shown["reason"], system.log("orchestrator"))
    return shown


def test_a_deployment_is_split_with_its_head_on_a_trusted_node(deployment):
    placement = deployment["placement"]
    assert placement["head"] in ("h1", "h2")
    assert len({placement["head"], *(stage["node"] for stage in placement["stages"])}) >= 3
    assert placement["stages"][0]["first_layer"] == 0
    assert placement["stages"][-1]["end_layer"] == 6


def test_the_split_model_gives_the_tokens_of_the_unsplit_one(system, job, deployment):
    answer = completion(system, deployment["id"], 24)
    tokens, _ = generate(job["summary"]["model_folder"], PROMPT, 24)
    assert answer["utopia"]["tokens"] == tokens
    assert answer["usage"]["prompt_tokens"] == len(PROMPT)


@pytest.fixture(scope="module")
def openai_client(system):
    with openai.DefaultHttpxClient(trust_env=False, timeout=20) as http:
        yield openai.OpenAI(base_url=f"{system.url}/v1", api_key="none", http_client=http, max_retries=0)


def test_openais_client_completes_a_text(openai_client, deployment, job):
    model = deployment["id"]
    assert model in [item.id for item in openai_client.models.list()]
    whole = openai_client.completions.create(model=model, prompt=PROMPT, max_tokens=12, n=2, logprobs=2)
    assert [choice.finish_reason for choice in whole.choices] == ["length", "length"]
    assert whole.choices[0].text == whole.choices[1].text
    assert whole.usage.completion_tokens == 24
    assert len(whole.choices[0].logprobs.token_logprobs) == 12
    stop = whole.choices[0].text[4:6]
    stream = openai_client.completions.create(
        model=model, prompt=PROMPT, max_tokens=12, stop=stop, stream=True
    )
    pieces = list(stream)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text.partition(stop)[0]
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_openais_client_chats_and_a_seed_repeats_the_answer(openai_client, deployment):
    asked = {"model": deployment["id"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 10}
    drawn = [
        openai_client.chat.completions.create(**asked, temperature=1.2, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    stream = openai_client.chat.completions.create(
        **asked, temperature=1.2, seed=1, stream=True, stream_options={"include_usage": True}
    )
    *pieces, last = list(stream)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == drawn[0]
    assert last.usage.completion_tokens == 10
    timings = last.model_extra["timings"]
    assert timings["predicted_n"] == 10
    parts_ms = timings["utopia"]["predicted"]
    assert sum(parts_ms.values()) == pytest.approx(timings["predicted_ms"], rel=0.05)
    assert len({one["node"] for one in timings["utopia"]["nodes"]}) == len(deployment["placement"]["hops"])
    assert timings["utopia"]["emulated"] is True, "the nodes of this test are paced"


def test_openais_client_understands_refusals(openai_client, deployment):
    with pytest.raises(openai.NotFoundError, match="there is no deployment"):
        openai_client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.BadRequestError, match="context") as refused:
        openai_client.completions.create(model=deployment["id"], prompt="x" * 3000)
    assert refused.value.param == "prompt"


def test_a_prompt_beyond_the_context_is_refused(system, deployment):
    body = {"model": deployment["id"], "prompt": "x" * 3000, "max_tokens": 5}
    answer = system.session.post(system.url + "/v1/completions", json=body, timeout=20)
    assert answer.status_code == 400, answer.text
    assert "context" in answer.json()["error"]["message"]


def test_a_limit_that_holds_no_sequence_is_refused_before_anything_is_deployed(system):
    before = system.get("/api/v1/runs")["total"]
    words = ["--model", str(system.model), "--kv-cache-bytes", "1000", "--context-tokens", "64"]
    command = [sys.executable, "-m", "orchestrator.cli", "deploy", *words, "--url", system.url]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1, refused.stderr
    assert "kv_cache_bytes is 1000, but one sequence of 64 tokens takes" in refused.stderr
    assert system.get("/api/v1/runs")["total"] == before


def test_a_preview_shows_costs_and_alternatives_and_changes_nothing(system, deployment):
    address = f"/api/v1/deployments/{deployment['id']}"
    preview = system.post(f"{address}/preview", {})
    assert preview["placement"]["head"] == deployment["placement"]["head"]
    assert any(option["chosen"] and option["cost"] > 0 for option in preview["alternatives"])
    assert system.get(address)["route_epoch"] == deployment["route_epoch"]


def test_generation_goes_on_with_the_same_tokens_when_a_stage_is_killed(system, job, deployment):
    address = f"/api/v1/deployments/{deployment['id']}"
    placement = system.get(address)["placement"]
    victim = next(stage["node"] for stage in placement["stages"] if stage["node"] != placement["head"])
    expected, _ = generate(job["summary"]["model_folder"], PROMPT, 200)
    body = {"model": deployment["id"], "prompt": PROMPT, "max_tokens": 200, "stream": True}
    begun, tokens, epochs, ends = threading.Event(), [], [], []

    def read():
        url = f"{system.url}/v1/completions"
        with system.session.post(url, json=body, stream=True, timeout=30) as answer:
            for line in answer.iter_lines(decode_unicode=True):
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "utopia" in chunk:
                    tokens.append(chunk["utopia"]["token"])
                    epochs.append(chunk["utopia"]["epoch"])
                else:
                    ends.append(chunk)
                if len(tokens) == 10:
                    begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20)
    system.kill(victim)
    reader.join(45)
    assert not reader.is_alive(), system.log("orchestrator")
    assert tokens == expected, (ends, system.log("orchestrator"))
    assert epochs[0] < epochs[-1], "the route was replaced while generating"
    shown = system.wait_state(address, ("serving",))
    assert victim not in [stage["node"] for stage in shown["placement"]["stages"]]
    decisions = system.get(f"{address}/decisions")["items"]
    failover = next(item for item in decisions if item["kind"] == "failover")
    assert victim in failover["reason"]


def test_a_deployment_is_taken_down_and_completions_are_refused_then(system, deployment):
    address = f"/api/v1/deployments/{deployment['id']}"
    system.delete(address)
    system.wait_state(address, ("retired",))
    body = {"model": deployment["id"], "prompt": "x"}
    assert system.session.post(system.url + "/v1/completions", json=body, timeout=10).status_code == 404


def test_more_nodes_than_there_are_is_a_conflict(system, job):
    answer = system.session.post(system.url + "/api/v1/deployments", json={"min_nodes": 9}, timeout=10)
    assert answer.status_code == 409
    assert "min_nodes is 9" in answer.json()["detail"]


def test_records_survive_a_restart_and_workers_come_back_by_themselves(system, job):
    assert system.stop("orchestrator") == 0
    system.start_orchestrator()
    runs = system.get("/api/v1/runs")["items"]
    assert job["id"] in [run["id"] for run in runs]
    assert system.get(f"/api/v1/jobs/{job['id']}")["epochs"] == job["epochs"]
    system.wait(
        lambda: sum(item["alive"] for item in system.get("/api/v1/nodes")["items"]) == len(FLOPS) - 1,
        what="the living workers have attached again",
    )
