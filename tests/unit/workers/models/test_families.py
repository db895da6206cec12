"""Models of the library's families: read, trained on a node, tuned and read again by the library itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from model_worlds import profile
from safetensors.torch import load_file, save_file
from test_trainer import PLAN

from orchestrator.adapters.models import FolderModels
from orchestrator.errors import ModelError
from workers.device import Pacer
from workers.errors import RequestRefused
from workers.finetune.trainer import Trainer
from workers.models import lora
from workers.models.architecture import architecture
from workers.models.embedded import tokenizer_json
from workers.models.lora import Lora
from workers.wire.frames import Frame

transformers = pytest.importorskip("transformers")

_NEW = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 256,
}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": (
        "gpt2",
        {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        | {"bos_token_id": 256, "eos_token_id": 256},
    ),
    "mistral": ("mistral", {**_NEW, "sliding_window": 16}),
    "qwen2": ("qwen2", {**_NEW, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_NEW, "head_dim": 8, "tie_word_embeddings": True}),
    "llama with biases": ("llama", {**_NEW, "attention_bias": True}),
    "llama": ("llama", {**_NEW, "tie_word_embeddings": False}),
}
TEXT = b"the quick brown fox jumps over the lazy dog. " * 40
ADAPTERS = Lora(rank=4, alpha=8.0)


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request, tmp_path_factory):
    family, values = FAMILIES[request.param]
    made = tmp_path_factory.mktemp("families") / "model"
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(family, **values)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(made)
    (made / "tokenizer.json").write_text(tokenizer_json())
    return made


def store(directory):
    return FolderModels(cache_dir=directory / "cache", tuned_dir=directory / "tuned", seed=1)


def read(models, folder):
    models.describe(str(folder))
    return models.resolve(str(folder), progress=lambda *_: None)


def logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor([list(TEXT[:40])])).logits


def node(model, parameters: dict[str, Any], **plan: Any) -> Trainer:
    made = Trainer(Pacer(profile()))
    training = {**PLAN, "learning_rate": 1e-2, **plan}
    ask(made, "train.load", parameters, version=0, config=model.config, training=training)
    ask(made, "train.data", {"tokens": np.frombuffer(TEXT, dtype=np.uint8)})
    return made


def ask(trainer: Trainer, kind: str, arrays: dict[str, Any] | None = None, **fields: Any) -> Any:
    return trainer.handle(Frame(kind, fields={"job": "j", **fields}, tensors=arrays or {}, id=1))


def held_out(models, model, parameters):
    return models.loss(model, parameters, np.frombuffer(TEXT[:321], np.uint8).astype(np.int32), sequence=16)


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "adapters"])
def test_a_node_trains_any_family_and_the_library_reads_what_was_tuned(folder, tmp_path, adapters):
    models = store(tmp_path)
    model = read(models, folder)
    start = models.parameters(model)
    projections = architecture(model.config).projections
    first = lora.initial(projections, ADAPTERS, seed=1) if adapters else start
    plan = {"lora_rank": 4, "lora_alpha": 8.0} if adapters else {}
    trainer = node(model, {**start, **first}, **plan)
    reply = ask(trainer, "train.run", epoch=0, version=0, seed=1)
    again = ask(trainer, "train.run", epoch=0, version=0, seed=1)
    assert all(np.array_equal(value, again.tensors[name]) for name, value in reply.tensors.items())
    assert set(reply.tensors) == set(first)
    tuned = {name: first[name] + value for name, value in reply.tensors.items()}
    whole = lora.merged(start, tuned, ADAPTERS, projections) if adapters else tuned
    loss = held_out(models, model, whole)
    assert loss < held_out(models, model, start) - 0.05

    saved = models.save(model, whole, job="job-1")
    theirs = logits(saved)
    targets = torch.tensor([list(TEXT[1:40])])
    assert not torch.allclose(theirs, logits(folder), atol=1e-3), "training has changed something"
    expected = torch.nn.functional.cross_entropy(theirs[0, :-1], targets[0])
    ours = models.loss(model, whole, np.frombuffer(TEXT[:40], np.uint8).astype(np.int32), sequence=39)
    assert ours == pytest.approx(float(expected), abs=1e-4)
    if adapters:  # merged, it is the model that the node trained
        kept = models.parameters(read(models, saved))
        assert all(np.array_equal(kept[name], whole[name]) for name in kept)


def test_an_untouched_model_is_saved_with_equal_logits(folder, tmp_path):
    models = store(tmp_path)
    model = read(models, folder)
    saved = models.save(model, models.parameters(model), job="job-1")
    assert torch.equal(logits(saved), logits(folder))


def test_a_folder_of_the_bare_model_and_of_half_precision_is_read_as_the_library_reads_it(tmp_path):
    family, values = FAMILIES["gpt2"]
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(family, **values)
    whole = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    whole.transformer.save_pretrained(tmp_path / "model")
    config.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(tokenizer_json())
    models = store(tmp_path)
    model = read(models, tmp_path / "model")
    saved = models.save(model, models.parameters(model), job="job-1")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([list(TEXT[:40])])).logits
    torch.testing.assert_close(logits(saved), expected, rtol=0, atol=0)


def broken(folder, tmp_path, **changes: object):
    """Copy a folder with a changed configuration."""
    copy = tmp_path / "broken"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    document = {**json.loads((folder / "config.json").read_text()), **changes}
    (copy / "config.json").write_text(json.dumps(document))
    return copy


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; models of gpt2, llama, mistral, qwen2, qwen3"),
        ({"n_layer": 3}, "missing, among them transformer.h.2"),
        ({"n_embd": 64}, "has shape .*the configuration gives"),
        ({"n_embd": 10**9}, "must be a whole number from 1 to 65536"),
        ({"n_head": 5}, "n_embd 32 is no multiple of n_head 5"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_what_the_folder_says(folder, tmp_path, changes, reason):
    with pytest.raises(ModelError, match=reason):
        store(tmp_path).describe(str(broken(folder, tmp_path, **changes)))


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_an_incomplete_folder_is_refused_before_anything_is_read(folder, tmp_path):
    copy = broken(folder, tmp_path)
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 missing, among them model\.layers\.1\.mlp\.up_proj\.weight"):
        store(tmp_path).describe(str(copy))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only safetensors are read"):
        store(tmp_path).describe(str(copy))


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_code_that_a_folder_brings_is_not_run(folder, tmp_path):
    copy = broken(folder, tmp_path, auto_map={"AutoModelForCausalLM": "own.Model"})
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    models = store(tmp_path)
    models.parameters(read(models, copy))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("folder", ["qwen3"], indirect=True)
def test_a_node_refuses_parameters_that_are_not_those_of_the_configuration(folder, tmp_path):
    models = store(tmp_path)
    model = read(models, folder)
    start = models.parameters(model)
    wrong = {**start, "model.norm.weight": np.zeros(7, dtype=np.float32)}
    with pytest.raises(RequestRefused, match=r"model\.norm\.weight has shape \[7\]"):
        node(model, wrong)


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_a_family_that_cannot_be_split_is_refused_by_name(folder, tmp_path):
    with pytest.raises(ModelError, match="only gpt2, llama, mistral, qwen2, qwen3 can be split"):
        store(tmp_path).check_split(str(broken(folder, tmp_path, model_type="mamba")))


def without_a_tensor(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors[max(name for name in tensors if "mlp" in name)]
    save_file(tensors, copy / "model.safetensors")


def with_a_misshapen_tensor(copy):
    tensors = load_file(copy / "model.safetensors")
    name = max(name for name in tensors if "mlp" in name and tensors[name].dim() == 2)
    tensors[name] = tensors[name][:, 1:].contiguous()
    save_file(tensors, copy / "model.safetensors")


def with_a_truncated_file(copy):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_a_tensor, "1 missing, among them"),
        (with_a_misshapen_tensor, "has shape .*, the configuration gives"),
        (with_a_truncated_file, r"model\.safetensors: cannot be read"),
        (lambda copy: (copy / "model.safetensors").unlink(), "only safetensors are read"),
        (lambda copy: (copy / "config.json").unlink(), r"config\.json: cannot be read"),
        (lambda copy: (copy / "tokenizer.json").unlink(), r"tokenizer\.json: cannot be read"),
        (lambda copy: (copy / "tokenizer.json").write_text("{}"), r"tokenizer\.json: cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_split_is_refused_before_it_is_deployed(folder, tmp_path, damage, reason):
    copy = broken(folder, tmp_path)
    store(tmp_path).check_split(str(copy))
    damage(copy)
    with pytest.raises(ModelError, match=reason):
        store(tmp_path).check_split(str(copy))


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"n_positions": 10**9}, "n_positions is 1000000000"),
        ({"n_layer": 3}, r"missing, among them transformer\.h\.2"),
        ({"n_inner": 64}, "has shape .*the configuration gives"),
        ({"eos_token_id": 9999}, "eos_token_id 9999"),
    ],
)
def test_a_gpt2_that_cannot_be_split_is_refused_with_the_reason(folder, tmp_path, changes, reason):
    with pytest.raises(ModelError, match=reason):
        store(tmp_path).check_split(str(broken(folder, tmp_path, **changes)))


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_layers_of_a_bare_folder_are_read_by_themselves(folder, tmp_path):
    copy = broken(folder, tmp_path)
    tensors = load_file(copy / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    save_file(bare, copy / "model.safetensors")
    models = store(tmp_path)
    models.check_split(str(copy))
    for where in (
        {"first_layer": 1, "end_layer": 2, "head": False},
        {"first_layer": 0, "end_layer": 0, "head": True},
    ):
        expected = models.shard(read(models, folder), **where)
        found = models.shard(read(models, copy), **where)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("folder", ["gpt2", "qwen3"], indirect=True)
def test_what_a_model_costs_follows_from_how_it_is_held_and_sent(folder, tmp_path):
    models = store(tmp_path)
    model = read(models, folder)
    half = model.held_in("bf16")
    whole, small = models.graph(model, wire="fp32"), models.graph(half, wire="int8")
    for before, after in zip((*whole.layers, whole.head), (*small.layers, small.head), strict=True):
        assert after.parameter_bytes * 2 == before.parameter_bytes
        assert (before.activation_bytes, after.activation_bytes) == (4 * 32, 32 + 4)
    assert [layer.kv_bytes_per_token for layer in small.layers] == [
        layer.kv_bytes_per_token for layer in whole.layers
    ]
    assert half.digest != model.digest == half.digest.removesuffix(":bf16")
    shard = models.shard(half, first_layer=0, end_layer=1, head=False)
    assert {array.dtype for array in shard.values()} == {np.dtype(np.uint16)}
    assert sum(array.nbytes for array in shard.values()) == small.layers[0].parameter_bytes
