"""Model folders: what is read, what is refused, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_worlds import TINY, random_parameters, tiny_folder
from safetensors.torch import load_file, save_file

from workers.models.architecture import architecture
from workers.models.config import parse_config
from workers.models.embedded import tokenizer_json
from workers.models.errors import BrokenModel, UnsupportedModel
from workers.models.loader import digest, digest_of_folder, load, read_config, read_parameters, write_folder
from workers.models.model_config import parameter_shapes

CONFIG = parse_config(TINY)


def split_in_two(folder: Path) -> None:
    """Turn a folder's one weights file into two with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {name: file for file, held in files.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "model.safetensors").unlink()


def replace_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    held = {**load_file(folder / "model.safetensors"), **tensors}
    save_file(
        {name: value for name, value in held.items() if value is not None}, folder / "model.safetensors"
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    assert read_config(folder) == TINY
    assert digest(read_parameters(folder, CONFIG)) == digest(random_parameters(CONFIG))
    assert load(folder).config == CONFIG


def test_a_shard_is_read_without_the_rest(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    split_in_two(folder)
    shard = read_parameters(folder, CONFIG, first_layer=2, end_layer=4, head=False)
    assert set(shard) == set(parameter_shapes(CONFIG, first_layer=2, end_layer=4, head=False))
    assert all(torch.equal(value, random_parameters(CONFIG)[name]) for name, value in shard.items())
    whole = read_parameters(folder, CONFIG)
    assert digest(whole) == digest(random_parameters(CONFIG))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = tiny_folder(tmp_path / "model")
    half = random_parameters(CONFIG)["model.norm.weight"].to(dtype)
    replace_tensors(folder, **{"model.norm.weight": half})
    read = read_parameters(folder, CONFIG)["model.norm.weight"]
    assert read.dtype == torch.float32
    assert torch.equal(read, half.float())


@pytest.mark.parametrize(("compute", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_folder_is_read_as_it_will_be_held(tmp_path: Path, compute: str, dtype: torch.dtype) -> None:
    folder = tiny_folder(tmp_path / "model")
    half = {name: value.to(dtype) for name, value in random_parameters(CONFIG).items()}
    replace_tensors(folder, **half)
    read = read_parameters(folder, CONFIG, compute=compute)
    assert all(torch.equal(read[name], half[name]) and read[name].dtype == dtype for name in half)


def test_the_digest_of_a_folder_is_that_of_its_parameters_in_fp32(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    half = random_parameters(CONFIG)["model.norm.weight"].to(torch.bfloat16)
    replace_tensors(folder, **{"model.norm.weight": half})
    split_in_two(folder)
    expected = digest(read_parameters(folder, CONFIG))
    assert digest_of_folder(folder, architecture(TINY)) == expected


def test_folders_of_transformers_are_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(TINY)).eval()
    theirs.save_pretrained(tmp_path / "model")
    ours = load(tmp_path / "model")
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_transformers_reads_our_folders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny_folder(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor([tokenizer("héllo")["input_ids"]])
    assert tokens.tolist() == [list("héllo".encode())]
    with torch.no_grad():
        torch.testing.assert_close(load(folder)(tokens), theirs(tokens).logits, atol=2e-4, rtol=1e-4)


def test_missing_and_misshapen_tensors_are_refused_with_the_reason(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    replace_tensors(folder, **{"model.norm.weight": torch.zeros(31)})
    with pytest.raises(BrokenModel, match=r"model.norm.weight has shape \[31\]"):
        read_parameters(folder, CONFIG)
    replace_tensors(folder, **{"model.norm.weight": None})  # type: ignore[arg-type]
    with pytest.raises(BrokenModel, match=r"1 missing, among them model\.norm\.weight"):
        read_parameters(folder, CONFIG)
    assert read_parameters(folder, CONFIG, first_layer=0, end_layer=1, head=False)


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    replace_tensors(folder, **{"model.norm.weight": torch.zeros(32, dtype=torch.int8)})
    with pytest.raises(UnsupportedModel, match=r"model.norm.weight is I8"):
        read_parameters(folder, CONFIG)


def test_an_index_cannot_point_out_of_the_folder(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    index = dict.fromkeys(parameter_shapes(CONFIG), "../../etc/passwd")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(BrokenModel, match="outside the folder"):
        read_parameters(folder, CONFIG)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("config.json", None, "cannot be read"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", "must hold a map"),
        ("model.safetensors", None, "cannot be read"),
        ("model.safetensors", "not tensors", "cannot be read"),
        ("tokenizer.json", "{}", "cannot be read"),
    ],
)
def test_a_broken_folder_is_refused_naming_the_file(
    tmp_path: Path, file: str, content: str | None, complaint: str
) -> None:
    from workers import models

    folder = tiny_folder(tmp_path / "model")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(BrokenModel, match=f"{file}.*{complaint}"):
        models.generate(folder, "x", 1)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    parameters = random_parameters(CONFIG)
    del parameters["model.norm.weight"]
    with pytest.raises(BrokenModel, match="missing"):
        write_folder(tmp_path / "model", TINY, parameters, tokenizer_json())
    tiny_folder(tmp_path / "taken")
    with pytest.raises(OSError, match="taken"):
        tiny_folder(tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_the_digest_covers_names_and_values() -> None:
    parameters = {"a": torch.zeros(2), "b": torch.ones(2)}
    same = {"b": torch.ones(2), "a": torch.zeros(2)}
    assert digest(parameters) == digest(same)
    assert digest(parameters) != digest({"a": torch.zeros(2), "c": torch.ones(2)})
    assert digest(parameters) != digest({"a": torch.zeros(2), "b": torch.tensor([1.0, 2.0])})
