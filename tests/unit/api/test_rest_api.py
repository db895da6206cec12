"""The REST API on doubles: what is answered, and how it refuses."""

from __future__ import annotations

import json

import pytest

from orchestrator.core.errors import Infeasible
from orchestrator.core.model import Measurement, PathMetrics, network
from orchestrator.errors import Conflict, ImpossibleRequest
from orchestrator.ports import Record
from scenarios.schema import Training


def measured(value):
    return Measurement(value=value, samples=10, age_s=0.1, source="probe")


def path(src, dst, delay_s=0.02):
    return PathMetrics(
        src=src,
        dst=dst,
        delay_s=measured(delay_s),
        loss_ratio=measured(0.01),
        capacity_bps=measured(16e6),
        available_bps=measured(15e6),
    )


def test_an_enrolment_token_is_made_for_a_node_and_the_node_is_listed(world):
    made = world.http.post("/api/v1/enrolment-tokens", json={"node": "h1", "trusted": True})
    assert made.status_code == 201
    assert made.json["token"].startswith("secret-of-h1.")
    listed = world.http.get("/api/v1/nodes").json
    assert [(item["node"], item["alive"], item["trusted"]) for item in listed["items"]] == [
        ("h1", False, True)
    ]
    assert listed["total"] == 1


@pytest.mark.parametrize(
    ("body", "field", "word"),
    [
        ({"node": 5}, "node", "string"),
        ({"trusted": True}, "node", "missing"),
        ({"node": "h1", "power": 3}, "power", "unknown key"),
    ],
)
def test_a_wrong_token_request_is_refused_by_field(world, body, field, word):
    answer = world.http.post("/api/v1/enrolment-tokens", json=body)
    assert answer.status_code == 400
    assert answer.content_type == "application/problem+json"
    assert answer.json["field"] == field
    assert word in answer.json["detail"]
    assert world.pool.records == {}


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff\xfe", b'"text"', b"[" * 100_000, b'{"a":' * 100_000])
def test_a_body_that_is_no_json_object_is_a_400_that_says_so(world, body):
    answer = world.http.post("/api/v1/jobs", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert "body is" in answer.json["detail"]


def test_a_body_is_understood_without_a_content_type(world):
    assert world.http.post("/api/v1/enrolment-tokens", data=b'{"node": "h1"}').status_code == 201


def test_a_page_of_another_site_cannot_make_the_browser_act(world):
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        answer = world.http.post("/api/v1/enrolment-tokens", json={"node": "h1"}, headers={"Origin": origin})
        assert (answer.status_code, answer.content_type) == (403, "application/problem+json")
    own = world.http.post(
        "/api/v1/enrolment-tokens", json={"node": "h1"}, headers={"Origin": "http://localhost"}
    )
    assert own.status_code == 201


def test_a_body_beyond_the_limit_is_refused(world):
    answer = world.http.post("/api/v1/jobs", data=b" " * (5 * 1024 * 1024))
    assert answer.status_code == 413
    assert answer.json["status"] == 413


@pytest.mark.parametrize("query", ["offset=99999999999999999999999", f"offset={2**63}", "limit=0"])
def test_a_page_that_nothing_can_count_to_is_refused_by_field(world, query):
    answer = world.http.get(f"/api/v1/jobs?{query}")
    assert answer.status_code == 400
    assert answer.json["field"] == query.split("=")[0]


def test_unknown_paths_and_methods_are_problem_documents(world):
    missing = world.http.get("/api/v1/nothing")
    assert (missing.status_code, missing.json["title"]) == (404, "Not Found")
    wrong = world.http.put("/api/v1/jobs", json={})
    assert wrong.status_code == 405
    assert "GET, POST" in wrong.json["detail"]
    assert "POST" in wrong.headers["Allow"]


def test_unknown_things_are_404_with_their_name(world):
    for address in ("/api/v1/nodes/h9", "/api/v1/jobs/job-9", "/api/v1/deployments/dep-9"):
        answer = world.http.get(address)
        assert answer.status_code == 404
        assert address.rsplit("/", 1)[1] in answer.json["detail"]


def test_a_job_of_another_kind_is_not_found_under_jobs(world):
    world.http.post("/api/v1/deployments", json={})
    assert world.http.get("/api/v1/jobs/dep-1").status_code == 404


def test_a_job_is_accepted_with_the_scenarios_defaults_and_a_location(world):
    answer = world.http.post("/api/v1/jobs", json={"policy": "all", "epochs": 3})
    assert answer.status_code == 202
    assert answer.headers["Location"] == "/api/v1/jobs/job-1"
    assert answer.json["spec"]["training"] == Training().model_dump()
    assert answer.json["spec"]["policy"] == "all"


@pytest.mark.parametrize(
    ("body", "field", "word"),
    [
        ({"weights": {"compute": 1.0}}, "weights", "sum to 2"),
        ({"policy": "best"}, "policy", "'oort' or 'plan'"),
        ({"epochs": 1}, "epochs", "greater than or equal to 2"),
        ({"training": {"optimiser": "lion"}}, "training.optimiser", "'adamw' or 'sgd'"),
        ({"nodes": ["h1", "h1"]}, "(body)", "more than once"),
        ({"policies": ["all"]}, "policies", "unknown key"),
    ],
)
def test_a_wrong_job_is_refused_by_field(world, body, field, word):
    answer = world.http.post("/api/v1/jobs", json=body)
    assert answer.status_code == 400
    assert answer.json["errors"][0]["field"] == field
    assert word in answer.json["detail"]
    assert world.store.records(kind="job", limit=9, offset=0)[1] == 0


def test_a_job_shows_the_newest_report_of_each_epoch(world):
    world.http.post("/api/v1/jobs", json={})
    world.events.publish("job-1", "epoch", {"epoch": 0, "loss": None})
    world.events.publish("job-1", "epoch", {"epoch": 1, "loss": None})
    world.events.publish("job-1", "epoch", {"epoch": 0, "loss": 2.0})
    shown = world.http.get("/api/v1/jobs/job-1").json
    assert shown["epochs"] == [{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": None}]


def test_cancelling_reaches_the_job(world):
    world.http.post("/api/v1/jobs", json={})
    assert world.http.delete("/api/v1/jobs/job-1").status_code == 202
    assert world.jobs.cancelled == ["job-1"]


def test_lists_are_paged_newest_first(world):
    for _ in range(5):
        world.http.post("/api/v1/jobs", json={})
    page = world.http.get("/api/v1/jobs?limit=2&offset=1").json
    assert [item["id"] for item in page["items"]] == ["job-4", "job-3"]
    assert (page["total"], page["limit"], page["offset"]) == (5, 2, 1)
    assert world.http.get("/api/v1/jobs?limit=0").status_code == 400
    assert world.http.get("/api/v1/jobs?limt=2").status_code == 400


def test_events_of_a_job_are_streamed_to_its_end(world):
    world.http.post("/api/v1/jobs", json={})
    world.events.publish("job-1", "epoch", {"epoch": 0, "loss": 2.0})
    world.events.publish("job-1", "state", {"state": "completed", "final": True})
    answer = world.http.get("/api/v1/jobs/job-1/events")
    assert answer.content_type.startswith("text/event-stream")
    blocks = answer.get_data(as_text=True).split("\n\n")
    assert blocks[1].splitlines()[:2] == ["id: 1", "event: epoch"]
    assert json.loads(blocks[2].splitlines()[2].removeprefix("data: "))["state"] == "completed"
    assert world.events.watchers() == 0


def test_the_network_shows_paths_to_and_from_each_alive_node_and_the_pairs(world):
    world.pool.join("h1")
    world.pool.join("h2")
    world.northbound.value = network(
        0.0, [path("orch", "h1"), path("h1", "orch", 0.03), path("h1", "h2"), path("h2", "h1")]
    )
    shown = world.http.get("/api/v1/network?src=h1").json
    first = shown["nodes"][0]
    assert first["from_orchestrator"]["delay_s"]["value"] == 0.02
    assert first["to_orchestrator"]["delay_s"]["value"] == 0.03
    assert shown["nodes"][1]["from_orchestrator"]["delay_s"] == {
        **shown["nodes"][1]["from_orchestrator"]["delay_s"],
        "value": None,
        "reason": "the path orch to h2 has not been measured",
    }
    assert [(pair["src"], pair["dst"]) for pair in shown["pairs"]["items"]] == [("h1", "h2")]


def test_scores_rank_the_alive_nodes_and_note_what_is_unknown(world):
    world.pool.join("h1", profile={"compute_flops": 1e9})
    world.pool.join("h2", profile={"compute_flops": 3e9})
    world.northbound.value = network(
        0.0,
        [path("orch", "h1", 0.2), path("h1", "orch", 0.2), path("orch", "h2"), path("h2", "orch")],
    )
    shown = world.http.get("/api/v1/scores?compute=0.5&bandwidth=0&time=0.5").json
    assert [(item["node"], item["rank"]) for item in shown["items"]] == [("h2", 1), ("h1", 2)]
    assert "worst" in shown["items"][0]["criteria"]["time"]["note"]
    wrong = world.http.get("/api/v1/scores?compute=0.9")
    assert wrong.status_code == 400
    assert "sum to 1.9" in wrong.json["detail"]


def test_what_the_core_finds_infeasible_is_a_409_with_its_reason(world, monkeypatch):
    def refuse(_deployment):
        raise Infeasible("memory", "memory: the model needs 9 bytes, the nodes together have 8")

    world.http.post("/api/v1/deployments", json={})
    monkeypatch.setattr(world.deployments, "preview", refuse)
    answer = world.http.post("/api/v1/deployments/dep-1/preview")
    assert answer.status_code == 409
    assert "needs 9 bytes" in answer.json["detail"]


def test_an_unforeseen_failure_is_a_500_without_its_inner_text(world, monkeypatch):
    def fail():
        raise RuntimeError("secret detail")

    monkeypatch.setattr(world.pool, "nodes", fail)
    answer = world.http.get("/api/v1/nodes")
    assert answer.status_code == 500
    assert "secret detail" not in answer.get_data(as_text=True)


def test_a_deployment_shows_its_live_state_and_can_be_migrated_and_taken_down(world):
    assert world.http.post("/api/v1/deployments", json={"min_nodes": 2}).json["state"] == "serving"
    assert world.http.post("/api/v1/deployments/dep-1/migrate").status_code == 202
    assert world.deployments.migrated == ["dep-1"]
    assert world.http.delete("/api/v1/deployments/dep-1").status_code == 202
    assert world.http.get("/api/v1/deployments/dep-1").json["state"] == "accepted"
    assert [run["id"] for run in world.http.get("/api/v1/runs").json["items"]] == ["dep-1"]


def test_readiness_names_what_is_missing(world, monkeypatch):
    assert world.http.get("/readyz").status_code == 200
    monkeypatch.setattr(world.pool, "ready", lambda: "the data-plane listener is not up")
    answer = world.http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json["checks"]["workers"]["reason"] == "the data-plane listener is not up"
    assert world.http.get("/healthz").status_code == 200


def test_a_conflict_is_a_409(world, monkeypatch):
    def refuse(_request):
        raise Conflict("job job-1 is running")

    monkeypatch.setattr(world.jobs, "submit", refuse)
    assert world.http.post("/api/v1/jobs", json={}).status_code == 409


def test_what_nothing_could_make_possible_is_a_422_that_names_the_field(world, monkeypatch):
    def refuse(_request):
        raise ImpossibleRequest("kv_cache_bytes is 1, but ...", field="kv_cache_bytes")

    monkeypatch.setattr(world.deployments, "deploy", refuse)
    answer = world.http.post("/api/v1/deployments", json={"kv_cache_bytes": 1})
    assert (answer.status_code, answer.content_type) == (422, "application/problem+json")
    assert answer.json["field"] == "kv_cache_bytes"
    assert answer.json["detail"].startswith("kv_cache_bytes is 1")


def test_metrics_are_in_prometheus_format(world):
    world.pool.join("h1")
    world.pool.create_token("h2", trusted=False)
    text = world.http.get("/metrics").get_data(as_text=True)
    assert "utopia_nodes 2.0" in text
    assert "utopia_nodes_alive 1.0" in text
    assert "utopia_generated_tokens_total 7.0" in text


def test_the_openapi_document_lists_the_routes_and_its_page_is_served(world):
    document = world.http.get("/openapi/openapi.json").json
    assert "/api/v1/jobs/{id}/events" in document["paths"]
    assert "weights" in document["components"]["schemas"]["JobRequest"]["properties"]
    assert world.http.get("/openapi/swagger").status_code == 200
    assert 'url=swagger"' in world.http.get("/openapi/").get_data(as_text=True)


@pytest.mark.parametrize(
    ("method", "path", "code", "kind", "error"),
    [
        ("get", "/api/v1/nodes", "200", "application/json", "application/problem+json"),
        ("post", "/api/v1/enrolment-tokens", "201", "application/json", "application/problem+json"),
        ("post", "/api/v1/jobs", "202", "application/json", "application/problem+json"),
        ("get", "/api/v1/jobs/{id}/events", "200", "text/event-stream", "application/problem+json"),
        ("post", "/v1/completions", "200", "application/json", "application/json"),
    ],
)
def test_the_openapi_document_tells_the_answers_as_they_are(world, method, path, code, kind, error):
    document = world.http.get("/openapi/openapi.json").json
    answers = document["paths"][path][method]["responses"]
    assert set(answers) == {code, "default"}
    assert set(answers[code]["content"]) == {kind}
    [(found, shape)] = answers["default"]["content"].items()
    assert found == error
    assert shape["schema"]["$ref"].rsplit("/", 1)[1] in document["components"]["schemas"]


def test_a_query_that_makes_no_sense_as_a_whole_is_called_a_query(world):
    answer = world.http.get("/api/v1/scores?compute=1")
    assert answer.status_code == 400
    assert answer.json["field"] == "(query)"


def test_round_times_of_before_a_node_attached_do_not_count_in_its_score(world):
    world.pool.join("h1", attached_at=100.0)
    world.pool.join("h2", attached_at=200.0)
    world.northbound.value = network(0.0, [])
    world.store.add(Record(id="job-1", kind="job", state="completed", created_at=150.0, spec={}))
    world.store.append(
        "job-1", at=160.0, type="epoch", body={"epoch": 0, "node_round_s": {"h1": 3.0, "h2": 4.0}}
    )
    items = world.http.get("/api/v1/scores").json["items"]
    assert {item["node"]: item["criteria"]["time"]["value"] for item in items} == {"h1": 3.0, "h2": None}


def test_the_caches_of_the_nodes_are_among_the_metrics(world):
    told = {"cache_limit_bytes": {"dep-1": 500}, "requests_waiting": {"dep-1": 2}}
    world.pool.join(
        "h1", cache_bytes={"dep-1": 300}, cache_free_bytes=900, requests_put_back={"dep-1": 7}, **told
    )
    world.pool.join("h2")
    text = world.http.get("/metrics").get_data(as_text=True)
    assert 'utopia_kv_cache_bytes{deployment="dep-1",node="h1"} 300.0' in text
    assert 'utopia_kv_cache_usage_ratio{node="h1"} 0.25' in text
    assert 'utopia_kv_cache_limit_bytes{deployment="dep-1",node="h1"} 500.0' in text
    assert 'utopia_requests_waiting_for_kv_cache{deployment="dep-1",node="h1"} 2.0' in text
    assert 'utopia_requests_put_back_total{deployment="dep-1",node="h1"} 7.0' in text
    assert 'node="h2"' not in text, "it does not tell"
