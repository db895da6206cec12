"""The OpenAI-compatible routes on doubles: what heads are asked, what clients are answered."""

from __future__ import annotations

import json

import pytest
from orchestrator_fakes import FakeGeneration

from orchestrator.errors import ConfigError, Unavailable


def token(text, number=5, **more):
    return {
        "text": text,
        "token": number,
        "epoch": 1,
        "index": 0,
        "margin": 0.5,
        "elapsed_s": 0.1,
        "replayed": 0,
        **more,
    }


def likely(text, *, logprob=-0.5):
    return token(text, logprob=logprob, token_text=text, top_logprobs=[[5, text, logprob], [6, "z", -2.0]])


def ends(*reasons):
    return [{"choice": n, "finish_reason": reason, "detail": None} for n, reason in enumerate(reasons)]


@pytest.fixture
def serving(world):
    """Deployment dep-1, which answers what `say` tells it to."""
    world.http.post("/api/v1/deployments", json={})

    def say(*chunks):
        world.deployments.generation = FakeGeneration(list(chunks))

    world.say = say
    say(token("a"), *ends("stop"))
    return world


def events(answer):
    """Return the documents of a stream that ended as it should."""
    *lines, last = answer.get_data(as_text=True).strip().split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_completion_has_openais_shape_and_counts_tokens(world):
    world.http.post("/api/v1/deployments", json={})
    world.deployments.generation = FakeGeneration(
        [token("a"), token("b", 6), {"finish_reason": "length", "detail": None}]
    )
    answer = world.http.post("/v1/completions", json={"model": "dep-1", "prompt": "x", "max_tokens": 2}).json
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "ab", "finish_reason": "length", "logprobs": None}]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert answer["utopia"]["tokens"] == [5, 6]
    assert world.http.get("/v1/models").json["data"][0]["id"] == "dep-1"


def test_a_streamed_completion_ends_with_done(world):
    world.http.post("/api/v1/deployments", json={})
    world.deployments.generation = FakeGeneration([token("a"), {"finish_reason": "stop", "detail": None}])
    body = {"model": "dep-1", "prompt": "x", "stream": True}
    lines = world.http.post("/v1/completions", json=body).get_data(as_text=True).strip().split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", ""]
    assert chunks[1]["choices"][0]["finish_reason"] == "stop"
    assert lines[-1] == "data: [DONE]"
    assert not world.deployments.generation.cancelled


def test_a_reader_that_leaves_a_stream_ends_the_generation(world):
    world.http.post("/api/v1/deployments", json={})
    world.deployments.generation = FakeGeneration([token("a"), token("b")])
    body = {"model": "dep-1", "prompt": "x", "stream": True}
    answer = world.http.post("/v1/completions", json=body, buffered=False)
    next(iter(answer.response))
    answer.close()
    assert world.deployments.generation.cancelled


def test_a_completion_that_breaks_off_is_an_error_not_a_short_text(world):
    world.http.post("/api/v1/deployments", json={})
    world.deployments.generation = FakeGeneration(
        [token("a"), {"finish_reason": "error", "detail": "the head is gone"}]
    )
    answer = world.http.post("/v1/completions", json={"model": "dep-1", "prompt": "x"})
    assert answer.status_code == 503
    assert "the head is gone" in answer.json["error"]["message"]


COMPLETION = {"model": "dep-1", "prompt": "x"}
CHAT = {"model": "dep-1", "messages": [{"role": "user", "content": "hello"}]}


def test_settings_reach_the_head_as_given_and_nothing_else(serving):
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "presence_penalty": 0.5, "seed": 3}
    serving.http.post("/v1/completions", json={**COMPLETION, **settings, "stop": "END", "logprobs": 2})
    (asked,) = serving.deployments.asked
    assert asked.fields() == {
        "sampling": {**settings, "alternatives": 2},
        "stop": ["END"],
        "prompt": "x",
        "bare": False,
        "max_tokens": 16,
    }


def test_without_a_temperature_nothing_is_drawn(serving):
    serving.http.post("/v1/completions", json=COMPLETION)
    assert serving.deployments.asked[0].sampling == {}


def test_answers_that_are_drawn_have_different_seeds_and_a_given_one_repeats_them(serving):
    serving.say(*ends("stop", "stop", "stop"))
    body = {**COMPLETION, "n": 3, "temperature": 1, "seed": 10}
    serving.http.post("/v1/completions", json=body)
    assert [asked.sampling["seed"] for asked in serving.deployments.asked] == [10, 11, 12]
    del body["seed"]
    serving.http.post("/v1/completions", json=body)
    assert len({asked.sampling["seed"] for asked in serving.deployments.asked}) == 3


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("x", ["x"]), ([1, 2], [[1, 2]]), (["x", "y"], ["x", "y"]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_a_prompt_is_text_or_tokens_or_several_of_them(serving, prompt, prompts):
    serving.say(*ends(*["stop"] * len(prompts)))
    answer = serving.http.post("/v1/completions", json={"model": "dep-1", "prompt": prompt}).json
    assert [asked.prompt for asked in serving.deployments.asked] == prompts
    assert answer["usage"]["prompt_tokens"] == 3 * len(prompts)


def test_a_prompt_of_several_answers_counts_once(serving):
    serving.say(token("a"), token("b", choice=1), *ends("stop", "length"))
    answer = serving.http.post("/v1/completions", json={**COMPLETION, "n": 2}).json
    assert [(c["index"], c["text"], c["finish_reason"]) for c in answer["choices"]] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert [choice["tokens"] for choice in answer["utopia"]["choices"]] == [[5], [5]]


def test_probabilities_have_openais_older_shape(serving):
    serving.say(likely("ab"), likely("c"), *ends("stop"))
    answer = serving.http.post("/v1/completions", json={**COMPLETION, "logprobs": 2}).json
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"ab": -0.5, "z": -2.0}, {"c": -0.5, "z": -2.0}],
        "text_offset": [0, 2],
    }


def test_a_conversation_is_written_by_the_models_template_and_answered(serving):
    serving.say(likely("hé"), *ends("stop"))
    answer = serving.http.post(
        "/v1/chat/completions", json={**CHAT, "logprobs": True, "top_logprobs": 2}
    ).json
    (asked,) = serving.deployments.asked
    assert (asked.prompt, asked.bare, asked.max_tokens) == ("<user>hello", True, None)
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hé", "refusal": None}
    assert choice["logprobs"]["content"][0]["bytes"] == [104, 195, 169]
    assert [item["token"] for item in choice["logprobs"]["content"][0]["top_logprobs"]] == ["hé", "z"]


def test_a_message_may_come_in_parts(serving):
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    serving.http.post(
        "/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": content}]}
    )
    assert serving.deployments.asked[0].prompt == "<user>ab"


def test_a_streamed_chat_says_who_speaks_then_what_then_why_it_ended(serving):
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    told = events(serving.http.post("/v1/chat/completions", json=body))
    assert [chunk["object"] for chunk in told] == ["chat.completion.chunk"] * 4
    assert [chunk["choices"][0]["delta"] for chunk in told[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {},
    ]
    assert told[2]["choices"][0]["finish_reason"] == "stop"
    assert told[3]["choices"] == []
    assert told[3]["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


def test_the_answers_of_a_stream_come_mixed_each_with_its_place(serving):
    serving.say(likely("ab"), token("c", choice=1), likely("d"), *ends("stop", "stop"))
    told = events(serving.http.post("/v1/completions", json={**COMPLETION, "n": 2, "stream": True}))
    assert [(c["choices"][0]["index"], c["choices"][0]["text"]) for c in told[:3]] == [
        (0, "ab"),
        (1, "c"),
        (0, "d"),
    ]
    assert told[2]["choices"][0]["logprobs"]["text_offset"] == [2]


def test_a_stream_that_breaks_off_tells_the_error_and_ends_the_other_answers(serving):
    serving.say(token("a"), {"choice": 1, "finish_reason": "error", "detail": "the head is gone"})
    body = {**COMPLETION, "n": 2, "stream": True}
    text = serving.http.post("/v1/completions", json=body).get_data(as_text=True)
    assert json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["message"] == (
        "the head is gone"
    )
    assert serving.deployments.generation.cancelled


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("completions", {"model": "dep-9", "prompt": "x"}, 404, None),
        ("completions", {"model": "dep-1"}, 400, "prompt"),
        ("completions", {**COMPLETION, "prompt": ""}, 400, "prompt"),
        ("completions", {**COMPLETION, "prompt": []}, 400, "prompt"),
        ("completions", {**COMPLETION, "prompt": [-1]}, 400, "prompt"),
        ("completions", {**COMPLETION, "temperature": 2.5}, 400, "temperature"),
        ("completions", {**COMPLETION, "top_p": 1.5}, 400, "top_p"),
        ("completions", {**COMPLETION, "n": 0}, 400, "n"),
        ("completions", {**COMPLETION, "n": 17}, 400, "n"),
        ("completions", {**COMPLETION, "prompt": ["x"] * 64, "n": 2}, 400, "n"),
        ("completions", {**COMPLETION, "stop": ["x"] * 17}, 400, "stop"),
        ("completions", {**COMPLETION, "stop": [""]}, 400, "stop"),
        ("completions", {**COMPLETION, "logprobs": 21}, 400, "logprobs"),
        ("completions", {**COMPLETION, "max_tokens": 0}, 400, "max_tokens"),
        ("completions", {**COMPLETION, "max_tokens": True}, 400, "max_tokens"),
        ("completions", {**COMPLETION, "max_tokens": "3"}, 400, "max_tokens"),
        ("completions", {**COMPLETION, "temperature": "1"}, 400, "temperature"),
        ("completions", {**COMPLETION, "prompt": [True, False]}, 400, "prompt"),
        ("completions", {**COMPLETION, "seed": True}, 400, "seed"),
        ("completions", {**COMPLETION, "echo": True}, 400, "echo"),
        ("completions", {**COMPLETION, "best_of": 3}, 400, None),
        ("completions", {**COMPLETION, "stream_options": {}}, 400, None),
        ("completions", {**COMPLETION, "suffix": "y"}, 400, "suffix"),
        ("chat/completions", {**CHAT, "messages": []}, 400, "messages"),
        ("chat/completions", {**CHAT, "messages": [{"role": "cook", "content": "x"}]}, 400, "messages"),
        ("chat/completions", {**CHAT, "messages": [{"role": "user"}]}, 400, "messages"),
        ("chat/completions", {**CHAT, "top_logprobs": 2}, 400, None),
        ("chat/completions", {**CHAT, "tools": []}, 400, "tools"),
    ],
)
def test_what_cannot_be_served_is_refused_in_openais_shape(serving, path, body, status, param):
    answer = serving.http.post(f"/v1/{path}", json=body)
    assert answer.status_code == status
    error = answer.json["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    if param:
        assert error["param"].split(".")[0] == param
    assert serving.deployments.asked == []


def test_one_model_can_be_looked_up(serving):
    assert serving.http.get("/v1/models/dep-1").json["id"] == "dep-1"
    assert serving.http.get("/v1/models/gpt-4").status_code == 404


@pytest.fixture
def keyed(make_world, tmp_path):
    path = tmp_path / "keys"
    path.write_text(
        "# of the laboratory\n  # and a comment further in\nthe-key-of-the-first\n\nthe-key-of-the-second\n"
    )
    return make_world(api_keys_file=path)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer", 401),
        ("Bearer the-key-of-nobody", 401),
        ("Basic the-key-of-the-first", 401),
        ("Bearer # of the laboratory", 401),
        ("Bearer # and a comment further in", 401),
        ("Bearer the-key-of-the-first", 200),
        ("bearer the-key-of-the-second", 200),
    ],
)
def test_where_keys_are_configured_completions_need_one(keyed, header, status):
    headers = {} if header is None else {"Authorization": header}
    answer = keyed.http.get("/v1/models", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json["error"]["code"] == "unauthorized"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert keyed.http.get("/healthz").status_code == 200


@pytest.mark.parametrize(("text", "word"), [("", "no key"), ("short\n", "fewer than"), (None, "read")])
def test_a_file_of_keys_that_would_let_nobody_or_anybody_in_is_refused(make_world, tmp_path, text, word):
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=word):
        make_world(api_keys_file=path)


def test_requests_tokens_and_their_times_are_counted_per_model(serving):
    serving.say(token("a"), token("b"), token("c", choice=1), *ends("stop", "length"))
    serving.http.post("/v1/completions", json={**COMPLETION, "n": 2})
    serving.say(token("a"))
    answer = serving.http.post("/v1/completions", json={**COMPLETION, "stream": True}, buffered=False)
    next(iter(answer.response))
    assert 'utopia_requests_running{model="dep-1"} 1.0' in metrics(serving)
    assert 'utopia_requests_waiting{model="dep-1"} 0.0' in metrics(serving), "it has a token"
    answer.close()
    text = metrics(serving)
    for line in (
        'utopia_requests_running{model="dep-1"} 0.0',
        'utopia_prompt_tokens_total{model="dep-1"} 6.0',
        'utopia_output_tokens_total{model="dep-1"} 4.0',
        'utopia_time_to_first_token_seconds_count{model="dep-1"} 3.0',
        'utopia_time_per_output_token_seconds_count{model="dep-1"} 1.0',
        'utopia_request_duration_seconds_count{model="dep-1"} 2.0',
        'utopia_answers_total{finish_reason="length",model="dep-1"} 1.0',
        'utopia_answers_total{finish_reason="cancelled",model="dep-1"} 1.0',
    ):
        assert line in text


def test_requests_that_wait_and_those_that_are_refused_are_counted(serving):
    seen = []

    def chunks():
        seen.append(metrics(serving))
        yield token("a")
        yield from ends("stop")

    serving.say(token("a"))
    serving.deployments.generation._chunks = chunks()
    serving.http.post("/v1/completions", json=COMPLETION)
    assert 'utopia_requests_waiting{model="dep-1"} 1.0' in seen[0], "no token yet"
    assert 'utopia_requests_waiting{model="dep-1"} 0.0' in metrics(serving)

    def refuse(_model, _asked):
        raise Unavailable("busy")

    serving.deployments.complete = refuse
    assert serving.http.post("/v1/completions", json=COMPLETION).headers["Retry-After"] == "1"
    assert 'utopia_requests_refused_total{error="Unavailable",model="dep-1"} 1.0' in metrics(serving)
    assert 'utopia_requests_waiting{model="dep-1"} 0.0' in metrics(serving)


def metrics(world):
    return world.http.get("/metrics").get_data(as_text=True)


def timed(text, **more):
    spent = {"compute_s": 0.06, "queue_s": 0.01, "wire_s": 0.03, "emulated": False}
    return token(text, nodes=[["h1", 0.02, 0.01], ["h2", 0.04, 0.0]], **spent, **more)


def test_an_answer_tells_its_time_as_llamacpp_does_and_where_it_went(serving):
    serving.say(timed("a"), timed("b"), timed("c"), *ends("length"))
    timings = serving.http.post("/v1/completions", json=COMPLETION).json["timings"]
    assert timings == {
        "prompt_n": 3,
        "prompt_ms": pytest.approx(100),
        "prompt_per_token_ms": pytest.approx(100 / 3),
        "prompt_per_second": pytest.approx(30),
        "predicted_n": 3,
        "predicted_ms": pytest.approx(200),
        "predicted_per_token_ms": pytest.approx(100),
        "predicted_per_second": pytest.approx(10),
        "utopia": {
            "emulated": False,
            "prompt": {name: pytest.approx(ms) for name, ms in _parts(60, 10, 30).items()},
            "predicted": {name: pytest.approx(ms) for name, ms in _parts(120, 20, 60).items()},
            "nodes": [
                {"node": "h1", "compute_ms": pytest.approx(60), "queue_ms": pytest.approx(30)},
                {"node": "h2", "compute_ms": pytest.approx(120), "queue_ms": pytest.approx(0)},
            ],
        },
    }


def _parts(compute, queue, wire):
    return {"compute_ms": compute, "queue_ms": queue, "wire_ms": wire}


def test_a_stream_tells_its_time_with_the_usage_and_not_before(serving):
    serving.say(timed("a"), timed("b"), *ends("length"))
    body = {**COMPLETION, "stream": True, "stream_options": {"include_usage": True}}
    *told, last = events(serving.http.post("/v1/completions", json=body))
    assert last["usage"]["completion_tokens"] == last["timings"]["predicted_n"] == 2
    assert not any("timings" in event for event in told)
    assert told[0]["utopia"]["compute_s"] == 0.06
    assert "nodes" not in told[0]["utopia"]


def test_of_several_answers_each_has_its_time(serving):
    serving.say(timed("a"), timed("b", choice=1), timed("c", choice=1), *ends("stop", "stop"))
    answer = serving.http.post("/v1/completions", json={**COMPLETION, "n": 2}).json
    assert "timings" not in answer
    assert [one["timings"]["predicted_n"] for one in answer["utopia"]["choices"]] == [1, 2]
    assert answer["utopia"]["choices"][0]["timings"]["predicted_per_second"] is None, "one token has no pace"


def test_an_answer_whose_head_told_no_split_says_that_it_is_unknown(serving):
    timings = serving.http.post("/v1/completions", json=COMPLETION).json["timings"]
    assert timings["prompt_ms"] == pytest.approx(100)
    assert timings["utopia"] is None


def test_where_the_time_of_tokens_went_is_counted(serving):
    serving.say(timed("a"), timed("b"), timed("c"), *ends("length"))
    serving.http.post("/v1/completions", json=COMPLETION)
    text = metrics(serving)
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if "token_time_seconds_total{" in line)
    spent = 'utopia_token_time_seconds_total{emulated="false",model="dep-1",part="%s",phase="%s"}'
    node = 'utopia_node_token_time_seconds_total{emulated="false",model="dep-1",node="%s",part="%s"}'
    assert float(found[spent % ("compute", "prompt")]) == pytest.approx(0.06)
    assert float(found[spent % ("wire", "decode")]) == pytest.approx(0.06)
    assert float(found[node % ("h2", "compute")]) == pytest.approx(0.12)
    assert float(found[node % ("h1", "queue")]) == pytest.approx(0.03)
