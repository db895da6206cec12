"""The decoder against transformers' own, and its parts against the whole."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_worlds import TINY, config_with, random_parameters, tiny_folder, tiny_model

from benchmarks.split_overhead.correct import LLAMA3
from workers import models
from workers.errors import ModelError
from workers.models.chain import Chain
from workers.models.config import parse_config
from workers.models.errors import BrokenModel, UnsupportedModel
from workers.models.kv_cache import KvCache
from workers.models.model_config import parameter_shapes
from workers.models.reference import generate_tokens
from workers.models.split import build, make

FAMILIES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "no groups": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 16},
    "llama3 rotary": {"rope_theta": None, "rope_parameters": LLAMA3},
    "llama with biases": {"attention_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral with a window": {"model_type": "mistral", "sliding_window": 16, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3 with biases": {
        "model_type": "qwen3",
        "head_dim": 16,
        "attention_bias": True,
        "rms_norm_eps": 1e-6,
    },
    "gpt2": {"model_type": "gpt2"},
    "gpt2 untied": {"model_type": "gpt2", "tie_word_embeddings": False, "n_inner": None},
}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def pair(request: pytest.FixtureRequest) -> tuple[Chain, Any]:
    """The same model here and in transformers."""
    transformers = pytest.importorskip("transformers")
    document = config_with(**request.param)
    config = parse_config(document)
    parameters = random_parameters(config)
    values = {key: value for key, value in document.items() if key != "model_type"}
    theirs_config = transformers.AutoConfig.for_model(str(document["model_type"]), **values)
    if "sliding_window" in request.param:  # null would be left out of a map, and means another default
        theirs_config.sliding_window = request.param["sliding_window"]
    theirs = transformers.AutoModelForCausalLM.from_config(theirs_config).eval()
    missing, unexpected = theirs.load_state_dict(parameters, strict=False)
    assert set(missing) <= ({"lm_head.weight"} if config.tied_embeddings else set())
    assert not unexpected
    return build(config, parameters), theirs


def test_logits_are_those_of_transformers(pair: tuple[Chain, Any]) -> None:
    ours, theirs = pair
    tokens = torch.randint(0, 258, (3, 70), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=2e-4, rtol=1e-4)


def test_greedy_tokens_are_those_of_transformers(pair: tuple[Chain, Any]) -> None:
    ours, theirs = pair
    prompt = list(range(60, 90))
    found, margins = generate_tokens(ours, prompt, 40)
    with torch.no_grad():
        whole = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0].tolist()
    assert min(margins) > 1e-4
    assert found == whole[len(prompt) :]
    assert len(set(found)) > 3


@pytest.mark.parametrize("cuts", [[0, 6], [0, 1, 6], [0, 2, 4, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_parts_one_after_another_give_exactly_the_whole(cuts: list[int]) -> None:
    whole = tiny_model()
    parameters = whole.state_dict()
    tokens = torch.tensor([[1, 5, 9, 200, 77]])
    with torch.no_grad():
        x = whole.embed(tokens)
        for first, end in itertools.pairwise(cuts):
            names = parameter_shapes(whole.config, first_layer=first, end_layer=end, head=False)
            part = build(
                whole.config,
                {name: parameters[name] for name in names},
                first_layer=first,
                end_layer=end,
                head=False,
            )
            x = part.run_layers(x)
        assert torch.equal(whole.logits(x), whole(tokens))


@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 4], [2, 1, 4]])
def test_a_cache_gives_what_running_everything_again_would(chunks: list[int]) -> None:
    model = tiny_model()
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    cache = KvCache(model.config, first_layer=0, end_layer=6, limit_tokens=7)
    with torch.inference_mode():
        rows = [
            model.run_layers(model.embed(chunk), position=cache.tokens, cache=cache)
            for chunk in tokens.split(chunks, dim=1)
        ]
        whole = model.run_layers(model.embed(tokens))
    torch.testing.assert_close(torch.cat(rows, dim=1), whole, atol=2e-4, rtol=1e-4)


def test_loss_falls_when_the_model_follows_its_gradient() -> None:
    model = tiny_model()
    tokens = torch.randint(0, 258, (4, 17), generator=torch.Generator().manual_seed(0))
    loss = model.loss(tokens)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.01 * parameter.grad
    assert model.loss(tokens) < loss


def test_shapes_by_configuration_are_those_of_the_module() -> None:
    for changes in FAMILIES.values():
        config = parse_config(config_with(**changes))
        with torch.device("meta"):
            module = make(config)
        given = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        assert given == parameter_shapes(config)
        assert sum(value.numel() for value in module.parameters()) == config.parameters


@pytest.mark.parametrize(
    ("values", "window"), [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 64}, 64)]
)
def test_a_mistral_that_says_nothing_of_its_window_has_the_usual_one(
    values: dict[str, object], window: int | None
) -> None:
    assert parse_config({**TINY, "model_type": "mistral", **values}).window == window


def test_building_does_not_copy_parameters() -> None:
    config = parse_config(TINY)
    parameters = random_parameters(config)
    model = build(config, parameters)
    parameters["model.norm.weight"][0] = 42.0
    assert model.state_dict()["model.norm.weight"][0] == 42.0


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"model_type": "mamba"}, UnsupportedModel, "model_type is 'mamba'"),
        ({"model_type": None}, UnsupportedModel, "model_type is None"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act is 'gelu'"),
        ({"mlp_bias": True}, UnsupportedModel, "mlp_bias"),
        ({"model_type": "qwen2", "use_sliding_window": True}, UnsupportedModel, "use_sliding_window"),
        ({"model_type": "mistral", "sliding_window": 0}, BrokenModel, "sliding_window is 0"),
        ({"model_type": "qwen3", "num_key_value_heads": None}, BrokenModel, "num_key_value_heads is None"),
        ({"quantization_config": {"bits": 4}}, UnsupportedModel, "quantization_config"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, UnsupportedModel, "rope_type is 'yarn'"),
        ({"rope_parameters": "far"}, BrokenModel, "rope_parameters"),
        ({"rope_parameters": {**LLAMA3, "factor": None}}, BrokenModel, "factor is None"),
        ({"rope_parameters": {**LLAMA3, "high_freq_factor": 1.0}}, BrokenModel, "high_freq_factor"),
        ({"hidden_size": None}, BrokenModel, "hidden_size is None"),
        ({"hidden_size": 10**9}, BrokenModel, "hidden_size is 1000000000"),
        ({"hidden_size": True}, BrokenModel, "hidden_size is True"),
        ({"hidden_size": 33}, BrokenModel, "no multiple"),
        ({"num_key_value_heads": 3}, BrokenModel, "no multiple"),
        ({"head_dim": 7}, BrokenModel, "odd"),
        ({"num_hidden_layers": 0}, BrokenModel, "num_hidden_layers"),
        ({"rms_norm_eps": float("nan")}, BrokenModel, "rms_norm_eps"),
        ({"eos_token_id": 258}, BrokenModel, "eos_token_id 258"),
        ({"tie_word_embeddings": "yes"}, BrokenModel, "tie_word_embeddings"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused_with_the_reason(
    changes: dict[str, Any], error: type[ModelError], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        parse_config(config_with(**changes))


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda parameters: parameters.pop("model.norm.weight"), "1 missing, among them model.norm.weight"),
        (lambda parameters: parameters.update(extra=torch.zeros(1)), "do not belong there, among them extra"),
        (
            lambda parameters: parameters.update({"model.norm.weight": torch.zeros(31)}),
            r"model.norm.weight has shape \[31\], the configuration gives \[32\]",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_refused_with_the_reason(break_it: Any, complaint: str) -> None:
    config = parse_config(TINY)
    parameters = random_parameters(config)
    break_it(parameters)
    with pytest.raises(BrokenModel, match=complaint):
        build(config, parameters)


def test_generating_from_a_folder_is_generating_from_the_model(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    assert models.generate(folder, "hello", 12) == generate_tokens(tiny_model(), list(b"hello"), 12)


def test_a_prompt_beyond_the_context_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    with pytest.raises(ModelError, match="250 tokens and 7 new ones"):
        models.generate(folder, "x" * 250, 7)
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 256
